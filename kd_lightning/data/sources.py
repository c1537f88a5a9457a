"""Where rows come from: files, folders, data sets saved to disk, the hub."""

from __future__ import annotations

import glob
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_lightning.data.files import READERS, Bad, read_file
from kd_lightning.errors import KDError

SPLITS = ("train", "validation", "test")
"""The names of the splits."""

_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Found:
    """A row as it was found."""

    values: Mapping[str, Any]
    place: str
    id: str


class Origin(ABC):
    """Something that holds rows in one or several splits."""

    name: str
    """How messages call it."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Which of our splits it has."""

    @abstractmethod
    def read(self, split: str, bad: Bad | None = None) -> Iterator[Found]:
        """The rows of one of its splits, in order; lines that cannot be read go to `bad`."""

    def download(self) -> None:
        """Fetch what is not on this machine; called on one process per machine."""
        return


class Files(Origin):
    """Files, each belonging to a split."""

    def __init__(self, name: str, files: Mapping[str, Sequence[Path]]) -> None:
        self.name = name
        self._files = {split: paths for split, paths in files.items() if paths}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._files)

    def read(self, split: str, bad: Bad | None = None) -> Iterator[Found]:
        for path in self._files[split]:
            for values, line in read_file(path, bad):
                yield Found(values, f"{path}:{line}", f"{path.name}:{line}")


class Saved(Origin):
    """A folder written by `datasets` (`save_to_disk`)."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    def _load(self) -> Mapping[str, Any]:
        import datasets

        try:
            loaded = datasets.load_from_disk(str(self._folder))
        except (OSError, ValueError) as error:
            raise KDError(f"{self._folder}: not a readable saved data set ({error})") from None
        return loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}

    @property
    def splits(self) -> tuple[str, ...]:
        return _own_splits(self._load())

    def read(self, split: str, bad: Bad | None = None) -> Iterator[Found]:
        loaded = self._load()
        yield from _found(loaded[_their_split(loaded, split)], self._folder.name)


class Hub(Origin):
    """A data set on the Hugging Face hub."""

    def __init__(self, name: str, subset: str | None, revision: str | None, lazy: bool) -> None:
        self.name = name
        self._arguments = {"name": subset, "revision": revision}
        self._lazy = lazy

    def _load(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.name, streaming=self._lazy, **self._arguments)
        except Exception as error:  # the hub's client raises many kinds: all mean "not there"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise KDError(
                f"{self.name} is no file or folder here, and the hub does not give it ({reason}): "
                "check the name, --data.subset and --data.revision, or the connection"
            ) from None

    @property
    def splits(self) -> tuple[str, ...]:
        return _own_splits(self._load())

    def read(self, split: str, bad: Bad | None = None) -> Iterator[Found]:
        loaded = self._load()
        yield from _found(loaded[_their_split(loaded, split)], self.name)

    def download(self) -> None:
        if not self._lazy:
            self._load()


def open_origin(
    path: str, subset: str | None = None, revision: str | None = None, lazy: bool = False
) -> Origin:
    """What stands at `path`: a file, a pattern with *, a folder, or a name on the hub."""
    here = Path(path).expanduser()
    if here.is_dir():
        if any((here / mark).is_file() for mark in ("dataset_dict.json", "dataset_info.json")):
            return Saved(here)
        if (here / "card.json").is_file() or (here / "steps").is_dir():
            from kd_lightning.data.knowledge import Knowledge  # which is an Origin itself

            return Knowledge(here)
        return _folder(here)
    if "*" in path:
        files = [Path(name) for name in sorted(glob.glob(str(here)))]  # noqa: PTH207
        if not files:
            raise KDError(f"no file matches {path}: write an existing file to --data.path")
        return Files(path, {"train": files})
    named_like_a_file = here.suffix.lower() in READERS
    if here.exists() or named_like_a_file or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        if not here.exists():
            raise KDError(f"{path} does not exist: write an existing file to --data.path")
        return Files(path, {"train": [here]})
    return Hub(path, subset, revision, lazy)


def _folder(folder: Path) -> Files:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    if not files:
        raise KDError(f"{folder} has no data file: put one of {', '.join(READERS)} into it")
    found: dict[str, list[Path]] = {
        split: [path for path in files if _names_split(path.stem, split)] for split in SPLITS
    }
    return Files(str(folder), found if any(found.values()) else {"train": files})


def _names_split(stem: str, split: str) -> bool:
    words = re.split(r"[._\-]", stem.lower())
    return any(name in words for name in _NAMES[split])


def _own_splits(loaded: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(s for s in SPLITS if any(name in loaded for name in _NAMES[s]))


def _their_split(loaded: Mapping[str, Any], split: str) -> str:
    return next(name for name in _NAMES[split] if name in loaded)


def _found(rows: Any, name: str) -> Iterator[Found]:
    for number, values in enumerate(rows):
        yield Found(values, f"{name}, row {number}", f"{name}:{number}")
