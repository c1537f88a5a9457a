"""Files that are whole or absent, and proof that they are what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from kd_lightning.errors import KDError

LOCK = ".lock"
CHECKSUM = "xxh3_128"
_BLOCK = 1 << 20


def write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write a file beside its place, flush it to the disk, move it there; its SHA-256.

    Whenever the process ends, the file is the former one, the new one or absent.
    """
    digest = hashlib.sha256()
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    to_disk(path.parent)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> str:
    """The same for a value that JSON can hold."""
    return write(path, [(json.dumps(content, indent=1) + "\n").encode()])


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum() -> Any:
    """A checksum that is updated piece by piece, `CHECKSUM` by name.

    As sure against damage as SHA-256 and about ten times as fast; it proves nothing against
    somebody who means to deceive. Source: Collet, XXH3 (xxHash 0.8).
    """
    return xxhash.xxh3_128()


def checksum_of(path: Path) -> str:
    """The checksum of a file, read once."""
    found, block = checksum(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found.update(block[:size])
    return str(found.hexdigest())


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it does."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise KDError(f"{folder} is a file, or lies in one: write a folder to --output") from None
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KDError(
                f"another process is writing {folder}: wait for it, or write another --output"
            ) from None
        yield
