"""Training rows read while training: for data sets that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kd_lightning.data.collate import Filler
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.loader import ResumableLoader
from kd_lightning.data.rows import Row
from kd_lightning.data.sampler import GlobalSampler, share
from kd_lightning.errors import KDError
from kd_lightning.types import Batch

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule

BLOCK = 1024
"""Rows that are shuffled together."""


class StreamLoader(ResumableLoader):
    """Batches of a stream, with a position that is saved and restored.

    An epoch is `limit_train` rows; the next one goes on behind them, and begins again where the
    stream ends. Every rank reads the whole stream and encodes its share of each global batch. A row
    that the length policy leaves out becomes a filler, so that ranks stay in step and the position
    stays a plain count; each epoch says how many. A document longer than the limit gives one window
    of it, drawn by the seed. Shuffling is within blocks of 1024 rows, by the seed and the block.
    """

    def __init__(
        self,
        data: KDDataModule,
        sampler: GlobalSampler,
        shuffle: bool,
        settings: dict[str, Any],
    ) -> None:
        loader: DataLoader[Batch] = DataLoader(
            _Stream(data, sampler, shuffle),
            batch_size=None,
            generator=torch.Generator().manual_seed(sampler.seed),
            **{
                **settings,
                "persistent_workers": False,
            },  # a worker copies the position at its start
        )
        super().__init__(loader, sampler)

    def __iter__(self) -> Iterator[Batch]:
        empty = 0
        for batch in super().__iter__():
            empty += batch.ids.count("")
            if empty and not self.sampler.seen:
                rank_zero_info(f"stream: {empty} rows were left out (too long or no answer)")
            yield batch


class _Stream(IterableDataset[Batch]):
    """This rank's batches of one epoch; a worker makes every so-manyth of them."""

    def __init__(self, data: KDDataModule, sampler: GlobalSampler, shuffle: bool) -> None:
        self._data = data
        self._sampler = sampler
        self._shuffle = shuffle

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        s = self._sampler
        first = s.epoch * s.total + s.seen
        rows = islice(self._rows(), first, (s.epoch + 1) * s.total)
        collate = self._data.collate()
        for number in range(-(-(s.total - s.seen) // s.span)):
            together = list(islice(rows, s.span))
            if number % workers == worker:
                mine = share(np.arange(len(together)), s.rank, s.world)
                position = first + number * s.span
                yield collate([self._encode(together, i, position) for i in mine])

    def _encode(self, together: list[Row], index: int, position: int) -> Encoded | Filler:
        """A row of the global batch; a filler for one that is left out, or for none."""
        lengths = self._data.lengths("train")
        row = self._data.encode(self._data.example(together[max(index, 0)]))
        kept = lengths.apply(row) if index >= 0 else []
        if not kept:
            return Filler(row.cut(0, lengths.limit))
        draw = np.random.default_rng([self._sampler.seed, position + index])
        return kept[int(draw.integers(len(kept)))]

    def _rows(self) -> Iterator[Row]:
        """The stream without end, block by block in its order."""
        block = 0
        while True:
            rows = iter(self._data.placed("train"))
            empty = True
            while together := list(islice(rows, BLOCK)):
                empty = False
                if self._shuffle:
                    order = np.random.default_rng([self._sampler.seed, block])
                    together = [together[i] for i in order.permutation(len(together))]
                yield from together
                block += 1
            if empty:
                raise KDError("the stream has no row: check --data.path")
