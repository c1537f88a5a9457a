"""Random numbers of a step that are the same wherever a row is: functions of names."""

from __future__ import annotations

import hashlib


def number(*names: object) -> int:
    """Of [0, 2**63), from what it is for."""
    told = "/".join(str(name) for name in names).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little") >> 1


def share(*names: object) -> float:
    """Of [0, 1)."""
    return (number(*names) >> 10) / 2**53
