"""A written cache: its rows by their keys, sequential or random, from memory maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning import files
from kd_lightning.cache.kinds import Kind, kind_of
from kd_lightning.cache.layout import ROWS, Plane, Planes, mapped, places, size
from kd_lightning.cache.manifest import AGAIN, Manifest, Shard
from kd_lightning.errors import KDError

THREADS = 8
"""Files that are proven at once; hashing one is one core's work at 1 to 2 GB/s."""


class Reader:
    """The shards of a complete cache; opening it reads the manifest and the files' sizes."""

    def __init__(self, folder: Path) -> None:
        """Refuses what is not finished, and files that are missing or cut."""
        self.folder = folder
        self.manifest = Manifest.read(folder)
        if not self.manifest.complete:
            done, planned = len(self.manifest.shards), self.manifest.planned["shards"]
            raise KDError(
                f"the cache {folder} is not finished ({done} of {planned} shards): {AGAIN}, it "
                "goes on where it stopped"
            )
        self.kind: Kind = kind_of(self.manifest)
        self._proven: set[int] = set()
        self._mapped: dict[int, Planes] = {}
        self._index: tuple[NDArray[Any], ...] | None = None
        for shard in self.manifest.shards:
            self._present(shard)

    def _present(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not path.is_file():
            raise KDError(f"the cache lacks {path}: {AGAIN}, it writes what is missing")
        found = path.stat().st_size
        if found != shard.bytes or found != size(self.kind.planes, shard.counts):
            raise KDError(
                f"{path} is cut: it has {found} bytes of {shard.bytes}; {AGAIN}, it repairs that"
            )

    # ---- proof ------------------------------------------------------------------------------

    def prove(self, shards: Sequence[int] | None = None) -> None:
        """Compare files with their checksums: all (and what lies beside them), or some shards."""
        wanted = range(len(self.manifest.shards)) if shards is None else shards
        new = [i for i in wanted if i not in self._proven]
        pairs = [(self.manifest.shards[i].name, self.manifest.shards[i].checksum) for i in new]
        self._compare(pairs)
        self._proven.update(new)

    def prove_files(self) -> None:
        """The same for tokenizer and head."""
        self._compare(list(self.manifest.files.items()))

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> None:
        paths = [self.folder / name for name, _ in pairs]
        for path in paths:
            if not path.is_file():
                raise KDError(f"the cache lacks {path}: {AGAIN}, it writes what is missing")
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            found = list(pool.map(files.digest_of, paths))
        for path, digest, (_, wanted) in zip(paths, found, pairs, strict=True):
            if digest != wanted:
                raise KDError(
                    f"{path} is damaged: its content is not what was written (checksum); {AGAIN}, "
                    "it repairs that"
                )

    # ---- rows -------------------------------------------------------------------------------

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Number of each row in the cache, -1 where it is not there."""
        known, order, *_ = self.index
        wanted = np.frombuffer(b"".join(keys), "S16")
        at = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
        rows = order[at]
        return np.where(known[rows] == wanted, rows, -1)

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counted tokens of rows."""
        found: NDArray[np.int64] = self.index[4][rows].astype(np.int64)
        return found

    def read(self, rows: NDArray[np.int64]) -> Planes:
        """The planes of rows, one row after the other."""
        _, _, shard, start, tokens, slot, slots = self.index
        shards = [int(s) for s in shard[rows]]
        held = {s: self._map(s) for s in set(shards)}
        bounds = {
            "token": (start[rows].tolist(), (start[rows] + tokens[rows]).tolist()),
            "slot": (slot[rows].tolist(), (slot[rows] + slots[rows]).tolist()),
        }
        return {
            plane.name: _gather(plane, shards, held, *bounds[plane.per])
            for plane in self.kind.planes
        }

    def shards(self, rows: NDArray[np.int64]) -> set[int]:
        """The files that rows stand in."""
        return set(self.index[2][rows].tolist())

    @property
    def index(self) -> tuple[NDArray[Any], ...]:
        """By row: key, order of the keys, shard, start, tokens, slot, slots."""
        if self._index is None:
            pieces: list[list[NDArray[Any]]] = []
            for i, shard in enumerate(self.manifest.shards):
                planes = self._map(i)
                self._prove_index(shard)
                key = np.ascontiguousarray(planes["key"]).view("S16")[:, 0]
                rest = [planes[name].astype(np.int64) for name in ("start", "tokens", "slot")]
                slots = planes["slots"].astype(np.int64)
                pieces.append([key, np.full(len(key), i), *rest, slots])
            key, *others = (np.concatenate(part) for part in zip(*pieces, strict=True))
            self._index = (key, np.argsort(key, kind="stable"), *others)
        return self._index

    def _prove_index(self, shard: Shard) -> None:
        end = places(self.kind.planes, shard.counts)[ROWS[-1].name].end
        with (self.folder / shard.name).open("rb") as file:
            if sha256(file.read(end)).hexdigest() != shard.index_checksum:
                raise KDError(
                    f"{self.folder / shard.name} is damaged: its row index is not what was written "
                    f"(checksum); {AGAIN}, it repairs that"
                )

    def _map(self, shard: int) -> Planes:
        if shard not in self._mapped:
            described = self.manifest.shards[shard]
            path = self.folder / described.name
            self._mapped[shard] = mapped(path, self.kind.planes, described.counts)
        return self._mapped[shard]


def _gather(
    plane: Plane, shards: list[int], held: dict[int, Planes], starts: list[int], ends: list[int]
) -> NDArray[Any]:
    every = plane.every
    pieces = [np.empty((0, *plane.width), plane.dtype)]
    pieces += [
        held[s][plane.name][a // every : b // every]
        for s, a, b in zip(shards, starts, ends, strict=True)
    ]
    return np.concatenate(pieces)
