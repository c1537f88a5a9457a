"""Which rows are for training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from kd_lightning.data.files import Bad
from kd_lightning.data.sources import SPLITS, Found, Origin, open_origin
from kd_lightning.errors import KDError


class Splits:
    """Finds each split: a path of its own, the data set's own split, or a held-back share."""

    def __init__(
        self,
        paths: Mapping[str, str | None],
        *,
        share: float,
        seed: int,
        subset: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
    ) -> None:
        """`paths`: split to its path, if it has one; `share` of the training rows is held back."""
        if unknown := set(paths) - set(SPLITS):
            raise KDError(f"--data.path: {min(unknown)} is no split: use {', '.join(SPLITS)}")
        self.paths = {split: path for split, path in paths.items() if path}
        self._share = share
        self._seed = seed
        self._how = (subset, revision, streaming)

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """What was configured, by the split that it was configured for."""
        return {split: open_origin(path, *self._how) for split, path in self.paths.items()}

    def read(self, split: str, bad: Bad | None = None) -> Iterable[Found]:
        """The rows of a split, in order; lines that cannot be read go to `bad`."""
        train = self.origins.get("train")
        own = self.origins.get(split)
        if own is not None:
            if split not in own.splits and len(own.splits) > 1:
                raise KDError(f"{own.name} has no {split} rows (only {', '.join(own.splits)})")
            if split != "train" or "validation" in {*self.origins, *own.splits}:
                return own.read(split if split in own.splits else own.splits[0], bad)
        elif train is not None and split in train.splits:
            return train.read(split, bad)
        if split == "test" and ("validation" in self.origins or train is not None):
            return self.read("validation", bad)
        if train is None:
            raise KDError(f"there are no {split} rows: set --data.path=<file, folder or hub name>")
        return self._divide(split, train, bad)

    def download(self) -> None:
        """Fetch what is not on this machine."""
        for origin in self.origins.values():
            origin.download()

    def _divide(self, split: str, origin: Origin, bad: Bad | None) -> Iterable[Found]:
        if self._how[-1]:
            raise KDError("streaming cannot hold rows back: set --data.validation=<file>")
        own = origin.splits
        rows = list(origin.read("train" if "train" in own else own[0], bad))
        count = max(round(self._share * len(rows)), 1 if self._share else 0)
        if split == "validation" and not count:
            raise KDError("no validation rows: set --data.validation=<file> or a validation_share")
        if count >= len(rows):
            raise KDError(
                f"{origin.name} has {len(rows)} row(s), too few to hold some back for validation: "
                "set --data.validation=<file>"
            )
        chosen = set(np.random.default_rng(self._seed).permutation(len(rows))[:count].tolist())
        held = split == "validation"
        return [row for i, row in enumerate(rows) if (i in chosen) == held]
