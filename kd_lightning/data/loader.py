"""A loader that goes on exactly where a checkpoint was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kd_lightning.data.collate import Collate, Filler
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.groups import units
from kd_lightning.data.sampler import GlobalSampler
from kd_lightning.errors import KDError
from kd_lightning.types import Batch


class Rows(Dataset[Sequence[Encoded | Filler]]):
    """Encoded rows by the index of their unit; a negative index is a filler of the shortest row."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows
        self._units = units(rows)
        self._filler = Filler(min(rows, key=len))

    def __getitem__(self, index: int) -> Sequence[Encoded | Filler]:
        return [self._rows[i] for i in self._units[index]] if index >= 0 else [self._filler]

    def __len__(self) -> int:
        return len(self._units)


@dataclass(frozen=True)
class _Flat:
    """Collates the rows of several units."""

    collate: Collate

    def __call__(self, chosen: Sequence[Sequence[Encoded | Filler]]) -> Batch:
        return self.collate([row for unit in chosen for row in unit])


def make_loader(
    rows: Sequence[Encoded], sampler: GlobalSampler, collate: Collate, **settings: Any
) -> DataLoader[Batch]:
    """A loader that reads its sampler's lists, from the sampler's position, once per iteration."""
    return DataLoader(
        Rows(rows),  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=_Flat(collate),
        # of its own: else the workers' seed is drawn from the global stream, at another moment
        # after a resume than before
        generator=torch.Generator().manual_seed(sampler.seed),
        **settings,
    )


class ResumableLoader:
    """Batches of the training rows, with a position that is saved and restored.

    The state is (epoch, rows seen on all ranks, seed). It counts batches handed out, not batches
    that workers have read ahead. The position moves *before* a batch is handed out: a checkpoint
    written while the batch is being learned counts it, and after an epoch's last batch nobody asks
    again.
    """

    def __init__(self, loader: DataLoader[Batch], sampler: GlobalSampler) -> None:
        self._loader = loader
        self.sampler = sampler

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.sampler
        for batch, rows in zip(self._loader, sampler.strides(), strict=False):
            sampler.seen += rows
            if sampler.seen >= sampler.total:
                sampler.epoch, sampler.seen = sampler.epoch + 1, 0
            yield batch

    def __len__(self) -> int:
        return len(self.sampler)

    def state_dict(self) -> dict[str, int]:
        """Where the run stands; the same on every rank."""
        return {
            "epoch": self.sampler.epoch,
            "seen": self.sampler.seen,
            "seed": self.sampler.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        if not 0 <= state["seen"] < self.sampler.total:
            raise KDError(
                f"the checkpoint stands at row {state['seen']} of an epoch, and the data has "
                f"{self.sampler.total}: go on with the data that the run began with"
            )
        self.sampler.epoch = state["epoch"]
        self.sampler.seen = state["seen"]
        self.sampler.seed = state["seed"]
        self.sampler.check()
