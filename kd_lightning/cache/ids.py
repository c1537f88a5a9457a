"""Token ids in 16 bits each and, for larger vocabularies, the few bits above packed together."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning.cache.layout import Plane


def high_bits(vocab: int) -> int:
    """Bits of an id beyond the lower 16: 0, 2, 4 or 8."""
    return next(bits for bits in (0, 2, 4, 8) if vocab <= 1 << (16 + bits))


def together(vocab: int) -> int:
    """Ids whose high bits share a byte (1 where there are none)."""
    bits = high_bits(vocab)
    return 8 // bits if bits else 1


def planes(vocab: int, width: int) -> tuple[Plane, ...]:
    """For `width` ids a token."""
    low = Plane("ids_low", "<u2", width=(width,))
    share = together(vocab)
    high = Plane("ids_high", "u1", width=(-(-width // share),))
    return (low, high) if high_bits(vocab) else (low,)


def slot_planes(vocab: int) -> tuple[Plane, ...]:
    """For one id a slot."""
    low = Plane("ids_low", "<u2", "slot")
    high = Plane("ids_high", "u1", "slot", every=together(vocab))
    return (low, high) if high_bits(vocab) else (low,)


def pack(ids: NDArray[np.int64], vocab: int) -> dict[str, NDArray[Any]]:
    """`[..., W]` ids to their planes."""
    found: dict[str, NDArray[Any]] = {"ids_low": (ids & 0xFFFF).astype("<u2")}
    if bits := high_bits(vocab):
        share = together(vocab)
        padding = [(0, 0)] * (ids.ndim - 1) + [(0, -ids.shape[-1] % share)]
        high = np.pad(ids >> 16, padding).reshape(*ids.shape[:-1], -1, share)
        shifts = np.arange(share) * bits
        found["ids_high"] = (high << shifts).sum(-1).astype("u1")
    return found


def unpack(planes: dict[str, NDArray[Any]], vocab: int) -> NDArray[np.int64]:
    """The ids again. On little-endian machines: the halves are put where they stand in an id."""
    low = planes["ids_low"]
    words = np.zeros((*low.shape, 4), "<u2")
    words[..., 0] = low
    if high_bits(vocab):
        high = _opened(high_bits(vocab)).take(planes["ids_high"], axis=0)
        words[..., 1] = high.reshape(*low.shape[:-1], -1)[..., : low.shape[-1]]
    return words.view("<i8")[..., 0]


@cache
def _opened(bits: int) -> NDArray[np.uint16]:
    """What each byte of packed bits holds, `[256, 8 / bits]`."""
    shifts = np.arange(8 // bits) * bits
    return ((np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)).astype("<u2")
