"""A sharded checkpoint's files, read without running anything that is in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from kd_lightning.errors import KDError
from kd_lightning.reliability.checkpoint_io import opened

REST = "meta.pt"
"""The file with everything that is not sharded (Lightning's name for it)."""

INDEX = ".metadata"
"""The file that says which tensor is where (torch's name for it)."""

ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(str(d).removeprefix("torch.") for d in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    ))},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip
"""What the index of a checkpoint is made of; torch itself would run whatever stands there."""


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise KDError(
            f"the checkpoint's index asks for {module}.{name}, which no checkpoint holds: it is "
            "damaged or made to do harm, and was not read further"
        )


class _Reader(FileSystemReader):
    """torch's reader, whose index is plain data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


class _Planner(DefaultLoadPlanner):
    """torch's planner, whose single values are plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)  # refuses code; base then reads it
        plain.seek(0)
        super().load_bytes(read_item, plain)


def read_index(folder: Path) -> Metadata:
    """Which tensors a sharded checkpoint holds."""
    if not (folder / INDEX).is_file() or not (folder / REST).is_file():
        raise KDError(
            f"{folder} is no sharded checkpoint: it lacks {INDEX} or {REST}; write the folder that "
            "a run with trainer.strategy=KDStrategy saved"
        )
    with (folder / INDEX).open("rb") as file:
        index = _Index(file).load()
    if not isinstance(index, Metadata):
        raise KDError(f"the index of the checkpoint {folder} is damaged")
    if index.storage_meta is None:
        index.storage_meta = StorageMeta()
    return index


def read_into(state: dict[str, Any], folder: Path) -> None:
    """Fill a (nested) state's tensors in place; collective where processes are, alone otherwise."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)


def read_rest(folder: Path) -> dict[str, Any]:
    """Counters, callbacks, loops: plain data."""
    return opened(folder / REST)
