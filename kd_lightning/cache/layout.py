"""Where the numbers of a shard stand: one plane after the other, each on a page of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Planes = dict[str, NDArray[Any]]

ALIGN = 4096
"""A plane begins at a multiple of this many bytes."""


@dataclass(frozen=True)
class Plane:
    """One quantity, for all rows, all counted tokens or all slots of a shard."""

    name: str
    dtype: str
    """numpy's, little-endian."""
    per: Literal["row", "token", "slot"] = "token"
    width: tuple[int, ...] = ()
    """Shape of one value; (): a number."""
    every: int = 1
    """One value for so many slots."""

    @property
    def bytes(self) -> int:
        """Of one value."""
        return np.dtype(self.dtype).itemsize * prod(self.width)


ROWS = (
    Plane("key", "u1", "row", (16,)),  # digest of the row's tokens and mask
    Plane("start", "<u8", "row"),  # its first counted token in this shard
    Plane("tokens", "<u4", "row"),  # its counted tokens
    Plane("slot", "<u8", "row"),  # its first slot
    Plane("slots", "<u4", "row"),  # its slots
)
"""The index of a shard, in front of everything else."""


@dataclass(frozen=True)
class Counts:
    """How much a shard holds."""

    row: int
    token: int
    slot: int = 0


@dataclass(frozen=True)
class Place:
    """Where a plane stands in its file."""

    plane: Plane
    offset: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """One beyond its last byte."""
        return self.offset + self.plane.bytes * self.shape[0]


def places(planes: Sequence[Plane], counts: Counts) -> dict[str, Place]:
    """The place of every plane, the index first."""
    found: dict[str, Place] = {}
    offset = 0
    for plane in (*ROWS, *planes):
        number = getattr(counts, plane.per) // plane.every
        found[plane.name] = Place(plane, offset, (number, *plane.width))
        offset = -(-found[plane.name].end // ALIGN) * ALIGN
    return found


def size(planes: Sequence[Plane], counts: Counts) -> int:
    """Bytes of the file."""
    return max(place.end for place in places(planes, counts).values())


def parts(planes: Sequence[Plane], counts: Counts, values: Planes) -> Iterator[bytes]:
    """The file's content, piece by piece."""
    written = 0
    for name, place in places(planes, counts).items():
        value = np.ascontiguousarray(values[name], dtype=place.plane.dtype)
        assert value.shape == place.shape, (name, value.shape, place.shape)
        yield bytes(place.offset - written)
        yield value.tobytes()
        written = place.end


def index_checksum(counts: Counts, values: Planes) -> str:
    """SHA-256 of a file's beginning, up to the end of its row index."""
    return sha256(b"".join(parts((), counts, values))).hexdigest()


def mapped(path: Path, planes: Sequence[Plane], counts: Counts) -> Planes:
    """The planes of a file as views of its memory map: a page is read when it is looked at."""
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    return views(whole, places(planes, counts))


def views(whole: NDArray[np.uint8], found: Mapping[str, Place]) -> Planes:
    """Each plane of a file's bytes, typed and shaped."""
    return {
        name: whole[place.offset : place.end].view(place.plane.dtype).reshape(place.shape)
        for name, place in found.items()
    }
