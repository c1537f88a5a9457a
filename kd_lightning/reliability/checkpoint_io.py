"""Reading and writing one checkpoint file: plain data, checked, without stopping the training."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch import Tensor
from torch.distributed.tensor import DTensor

from kd_lightning.errors import KDError
from kd_lightning.files import checksum
from kd_lightning.reliability import commit

PLAIN = (str, int, float, bool, bytes, type(None), torch.dtype, torch.Size, torch.device)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class VerifiedIO(CheckpointIO):
    """Writes by the commit protocol, in the background if asked; verifies what it loads.

    In the background, tensors are copied to the host first, and the next save, a load or the end
    waits for the writer; what went wrong in it is raised there.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        """Store the settings.

        Args:
            asynchronous: Write while training goes on.
        """
        self.asynchronous = asynchronous
        self.after_commit: Callable[[], None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written in the background."""
        return self._pending is not None and not self._pending.done()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise KDError("checkpoints take no storage_options")
        self.wait()
        target = Path(path)
        held = plain(checkpoint, copy=self.asynchronous)
        size = bytes_of(held)
        require_space(target, size)
        if not self.asynchronous:
            self._write(held, target, size)
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._pool.submit(self._write, held, target, size)

    def _write(self, held: dict[str, Any], target: Path, size: int) -> None:
        aside = commit.temporary(target)
        try:
            with aside.open("wb") as file:
                stream = _Summing(file)
                torch.save(held, stream)  # type: ignore[arg-type]
            sums = {target.name: stream.sum.hexdigest()}
            commit.publish(aside, target, int(held.get("global_step", 0)), sums)
        except (OSError, RuntimeError) as error:
            commit.remove(aside)
            if is_full(error) or free_bytes(target) < size:
                raise no_space(target, size) from error
            raise
        if self.after_commit is not None:
            self.after_commit()

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        self.wait()
        if weights_only is False:
            raise KDError("checkpoints are read as plain data: leave out --weights_only=false")
        return read(Path(path), map_location)

    def remove_checkpoint(self, path: _PATH) -> None:
        self.wait()
        commit.remove(Path(path))

    def wait(self) -> None:
        """Until the last save is on the disk; raises what went wrong in it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)
        self.wait()


class _Summing:
    """A file whose checksum is taken while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.sum = checksum()
        self._file = file

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint file, after its checksum was checked; never runs code."""
    path = commit.require_whole(path)
    if path.is_dir():
        raise KDError(f"{path} is a sharded checkpoint: go on with trainer.strategy=KDStrategy")
    return opened(path, map_location)


def opened(path: Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The tensors and plain data of a file, or one sentence; never runs code."""
    try:
        content: dict[str, Any] = torch.load(
            path, map_location=map_location, mmap=mmap, weights_only=True
        )
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise KDError(
            f"the checkpoint {path} holds more than tensors and plain data, or is cut, and is not "
            f"opened ({reason})"
        ) from None
    except (RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KDError(f"the checkpoint {path} cannot be read ({reason})") from None
    return content


def plain(
    value: Any, copy: bool = False, where: str = "", seen: dict[Any, Any] | None = None
) -> Any:
    """The value, if it is made of tensors and plain data only; tensors copied to the host if asked.

    Tensors that are one in memory stay one.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        if not copy:
            return value
        storage = value.untyped_storage().data_ptr() if value.numel() else id(value)
        key = (storage, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, OrderedDict):
        made = OrderedDict((k, plain(v, copy, f"{where}.{k}", seen)) for k, v in value.items())
        made.__dict__.update(value.__dict__)  # versions of the modules in a state_dict
        return made
    if isinstance(value, Mapping):
        return {plain(k): plain(v, copy, f"{where}.{k}", seen) for k, v in value.items()}
    if type(value) in (list, tuple, set):
        parts = (plain(v, copy, f"{where}[{i}]", seen) for i, v in enumerate(value))
        return type(value)(parts)
    if type(value) in PLAIN:
        return value
    raise KDError(
        f"a checkpoint holds tensors and plain data only, and {where.lstrip('.') or 'this one'} is "
        f"a {type(value).__name__}: let state_dict() return numbers, texts, lists and tensors"
    )


def bytes_of(value: Any) -> int:
    """Size of the tensors in a nest of containers, each once; of sharded ones all shards."""
    found: dict[int, int] = {}

    def walk(part: Any) -> None:
        if isinstance(part, DTensor):
            found[id(part)] = part.numel() * part.element_size()
        elif isinstance(part, Tensor):
            found[part.untyped_storage().data_ptr() or id(part)] = part.untyped_storage().nbytes()
        elif isinstance(part, Mapping):
            for item in part.values():
                walk(item)
        elif isinstance(part, list | tuple | set):
            for item in part:
                walk(item)

    walk(value)
    return sum(found.values())


def is_full(error: BaseException | None) -> bool:
    """Whether a disk or a quota is full; torch hides the system's error behind one of its own."""
    if error is None:
        return False
    ranks = getattr(error, "failures", {})  # of a folder that several processes write
    told = [failure for failure, _ in ranks.values()]
    if getattr(error, "errno", None) in FULL or any(is_full(failure) for failure in told):
        return True
    return is_full(error.__cause__ or error.__context__)


def free_bytes(target: Path) -> int:
    """On the disk where `target` is to be."""
    return shutil.disk_usage(next(p for p in target.parents if p.exists())).free


def require_space(target: Path, size: int) -> None:
    """Refuse to begin writing what cannot fit; what is there stays untouched."""
    if free_bytes(target) < size * 1.01 + (1 << 20):
        raise no_space(target, size)


def no_space(target: Path, size: int) -> KDError:
    """The error of a full disk."""
    name = target.with_name(target.name.removeprefix(commit.UNFINISHED))
    return KDError(
        f"no space for the checkpoint {name}: {free_bytes(target):,} bytes are free and {size:,} "
        "are needed. The former checkpoints are untouched; free some space and go on with "
        "--resume=auto"
    )
