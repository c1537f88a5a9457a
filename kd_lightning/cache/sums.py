"""One number for each row: log p of its answer, in files that only grow."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_lightning import files
from kd_lightning.errors import KDError

RECORD = np.dtype([("key", "V16"), ("value", "<f8"), ("check", "<u4")])
MANIFEST = "reference.json"


def record(key: bytes, value: float) -> bytes:
    """A row's key, its number, and a checksum of both."""
    told = key + struct.pack("<d", value)
    return told + struct.pack("<I", zlib.crc32(told))


class Sums:
    """A folder with a manifest (whose numbers they are) and a file for each process that wrote.

    A record that a killed process left unfinished, and whatever stands behind it, is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, owner: Mapping[str, str]) -> None:
        """Say whose numbers they are; refuse a folder with another's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        told = {"kind": "reference log-probabilities", **owner}
        if not path.is_file():
            files.write_json(path, told)
        elif json.loads(path.read_text(encoding="utf-8")) != told:
            raise KDError(
                f"{self.folder} holds the log-probabilities of another reference model: delete "
                "the folder, or name another"
            )

    def add(self, rank: int, keys: Sequence[bytes], values: Sequence[float]) -> None:
        """Append to a process's own file, and see it to the disk."""
        path = self._path(rank)
        with path.open("ab") as out:
            pairs = zip(keys, values, strict=True)
            out.write(b"".join(record(key, value) for key, value in pairs))
        files.to_disk(path)

    def mend(self, rank: int) -> None:
        """Cut off what a killed process left unfinished in a process's own file."""
        path = self._path(rank)
        if path.is_file():
            whole = len(_records(path)) * RECORD.itemsize
            if whole != path.stat().st_size:
                with path.open("r+b") as out:
                    out.truncate(whole)

    def read(self) -> dict[bytes, float]:
        """All numbers by key."""
        found: dict[bytes, float] = {}
        for path in sorted(self.folder.glob("rank*.bin")):
            rows = _records(path)
            keys = [bytes(key) for key in rows["key"]]
            found.update(zip(keys, rows["value"].tolist(), strict=True))
        return found

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank{rank:05d}.bin"


def _records(path: Path) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The records up to the first that is not whole."""
    count = path.stat().st_size // RECORD.itemsize
    if not count:
        return np.empty(0, RECORD)
    rows = np.memmap(path, RECORD, "r", shape=(count,))
    bad = next(
        (
            i
            for i, row in enumerate(rows)
            if zlib.crc32(row.tobytes()[: RECORD.itemsize - 4]) != int(row["check"])
        ),
        count,
    )
    return rows[:bad]
