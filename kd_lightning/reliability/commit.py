"""A checkpoint is there as a whole or not at all: written aside, checksummed, renamed.

A checkpoint is a file with its manifest beside it (`step000300.ckpt.manifest.json`), or a folder
with its manifest inside (`manifest.json`). The manifest names every file with its size and
checksum; it is the commit mark: what has none was never finished, what differs from it is damaged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.files import CHECKSUM, checksum_of, digest_of
from kd_lightning.files import to_disk as _to_disk

log = logging.getLogger(__name__)

INSIDE = "manifest.json"
BESIDE = ".manifest.json"
UNFINISHED = ".writing-"
"""Beginning of the names of what is being written."""

_STEP = re.compile(r"step(\d+)")
_CHECKSUMS = {CHECKSUM: checksum_of, "sha256": digest_of}
"""How a file is summed, by the manifest's word; the first is written."""


@dataclass(frozen=True)
class Committed:
    """A checkpoint that was finished (whether it is still whole, `problem` tells)."""

    path: Path
    step: int


def manifest_of(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint is."""
    inside = checkpoint.is_dir()
    return checkpoint / INSIDE if inside else checkpoint.with_name(checkpoint.name + BESIDE)


def temporary(target: Path) -> Path:
    """Where to write what is to become `target`: beside it, on the same file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{UNFINISHED}{target.name}")
    remove(path)
    return path


def publish(written: Path, target: Path, step: int, sums: Mapping[str, str]) -> None:
    """Make what was written at `temporary(target)` the checkpoint `target`; one process does.

    A crash at any moment leaves the former checkpoints and at most an unfinished one. A former
    `target` is replaced as a whole.

    Args:
        written: A file, or a folder of files.
        target: The checkpoint's name.
        step: Optimizer steps done.
        sums: Checksums of the files that are on the disk and summed already.
    """
    folder = written.is_dir()
    files = {str(p.relative_to(written)): p for p in _files(written)} if folder else {}
    files = files or {target.name: written}
    told = {
        "format": 1,
        "step": step,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            name: {"bytes": path.stat().st_size, CHECKSUM: sums.get(name) or checksum_of(path)}
            for name, path in files.items()
        },
    }
    for path in files.values():
        _to_disk(path)
    if folder:
        _write(written / INSIDE, told)
        _to_disk(written)
        old = target.with_name(f"{UNFINISHED}old-{target.name}")
        remove(old)
        if target.exists():
            target.rename(old)
        written.rename(target)
        _to_disk(target.parent)
        remove(old)
    else:
        remove(target) if target.is_dir() else None
        mark = manifest_of(target)
        aside = mark.with_name(f"{UNFINISHED}{mark.name}")
        _write(aside, told)
        aside.replace(mark)  # without its data, or with a former one's, it marks nothing
        written.replace(target)
        _to_disk(target.parent)


def problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where every byte is as it was written."""
    if not checkpoint.exists():
        return "it does not exist"
    try:
        told = json.loads(manifest_of(checkpoint).read_text(encoding="utf-8"))
        named = {str(k): (int(v["bytes"]), *_sum_in(v)) for k, v in told["files"].items()}
    except FileNotFoundError:
        return "it was never finished (no manifest)"
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return "its manifest cannot be read"
    for name, (size, kind, value) in named.items():
        path = checkpoint / name if checkpoint.is_dir() else checkpoint
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and had {size}"
        if _CHECKSUMS[kind](path) != value:
            return f"{name} has changed since it was written (checksum)"
    if checkpoint.is_dir():
        found = {str(p.relative_to(checkpoint)) for p in _files(checkpoint)} - {INSIDE}
        if extra := found - set(named):
            return f"{min(extra)} is not in its manifest"
    return None


def require_whole(checkpoint: Path) -> Path:
    """Where a checkpoint really is (links followed); refuse a damaged one, by name."""
    path = checkpoint.resolve()
    if not path.exists():
        raise KDError(f"there is no checkpoint {checkpoint}")
    if not manifest_of(path).is_file():
        log.warning("%s has no manifest, so nobody can tell whether it is whole", path)
    elif wrong := problem(path):
        raise KDError(
            f"the checkpoint {path} is damaged: {wrong}. Take the one before it (--resume=auto "
            "finds it)"
        )
    return path


def committed(folder: Path) -> list[Committed]:
    """The finished checkpoints of a folder, oldest first; links are not counted."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.name.startswith(".") or path.is_symlink() or path.name.endswith(BESIDE):
            continue
        try:
            step = json.loads(manifest_of(path).read_text(encoding="utf-8"))["step"]
            found.append(Committed(path, int(step)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):  # named by `newest`: not silent
            found.append(Committed(path, step_in(path.name)))
    return sorted(found, key=lambda c: (c.step, c.path.name))


def newest(folder: Path) -> Committed | None:
    """The newest checkpoint that is whole; each that is passed over is named in the log."""
    unfinished = [p.name for p in _unfinished(folder)]
    if unfinished:
        log.warning("%s: never finished, passed over: %s", folder, ", ".join(unfinished))
    for found in reversed(committed(folder)):
        wrong = problem(found.path)
        if wrong is None:
            return found
        log.warning("%s is damaged and passed over: %s", found.path, wrong)
    return None


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, or a link alone; a kill meanwhile leaves what `clear` takes away."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    mark = manifest_of(checkpoint)
    if checkpoint.exists() and not checkpoint.name.startswith(UNFINISHED):
        aside = checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}")
        if aside.exists():
            remove(aside)
        checkpoint = checkpoint.rename(aside)
    mark.unlink(missing_ok=True)
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


def set_aside(folder: Path, after: int) -> list[Path]:
    """Move checkpoints later than a step out of the way: another course of the run wrote them."""
    later = [c.path for c in committed(folder) if c.step > after]
    later += [p for p in _unfinished(folder) if step_in(p.name) > after]
    moved = []
    for path in later:
        place = folder / "set_aside"
        place.mkdir(exist_ok=True)
        for part in (path, manifest_of(path)):
            if part.exists() and part.parent == folder:
                remove(place / part.name) if (place / part.name).is_dir() else None
                part.replace(place / part.name)
        moved.append(place / path.name)
    return moved


def clear(folder: Path) -> None:
    """Delete what a killed process has left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        remove(path)


def step_in(name: str) -> int:
    """The step that a checkpoint's name tells; -1 where it tells none."""
    found = _STEP.search(name)
    return int(found[1]) if found else -1


def verify(paths: list[str]) -> int:
    """`kd checkpoint verify`: 0 where everything named is whole."""
    bad = 0
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise KDError(f"there is no checkpoint {path}: name a file, its folder or a run's")
        inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        single = path.is_file() or (path / INSIDE).is_file()
        each = [path] if single else [c.path for c in committed(inside)] + _unfinished(inside)
        if not each:
            raise KDError(f"{path} holds no checkpoint: name a file, its folder or a run's")
        for checkpoint in each:
            wrong = problem(checkpoint.resolve())
            bad += wrong is not None
            print(f"{checkpoint}: {'whole' if wrong is None else wrong}")
    return 1 if bad else 0


def _sum_in(told: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and value of a file's checksum."""
    kind = next(kind for kind in _CHECKSUMS if kind in told)
    return kind, str(told[kind])


def _unfinished(folder: Path) -> list[Path]:
    found = folder.glob("*.ckpt") if folder.is_dir() else []
    return sorted(p for p in found if not p.is_symlink() and not manifest_of(p).is_file())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _write(path: Path, told: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
