"""Which rows a rank reads: a function of seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

Order = Callable[[int, int], NDArray[np.int64]]
"""(seed, epoch) to the order of the epoch's rows, the same on every rank."""

FILLER = -1
"""Index of a row with nothing to learn."""


@dataclass(frozen=True)
class Shuffled:
    """Every row once an epoch, each epoch in another order."""

    rows: int

    def __call__(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(self.rows)

    def __len__(self) -> int:
        return self.rows


@dataclass(frozen=True)
class InOrder:
    """Every row once an epoch, as they stand."""

    rows: int

    def __call__(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.arange(self.rows)

    def __len__(self) -> int:
        return self.rows


def share(order: NDArray[np.int64], rank: int, world: int) -> list[int]:
    """What `rank` reads of a global batch: as many rows as every other rank.

    Ranks take turns; where the rows do not divide, the last ones get a filler.
    """
    each = -(-len(order) // world)
    mine = [int(index) for index in order[rank::world]]
    return mine + [FILLER] * (each - len(mine))


class GlobalSampler:
    """Index lists of one rank, one for each optimizer step.

    Its position is (epoch, rows seen on all ranks): it names no rank, world size or batch size, so
    a run may go on with others.
    """

    def __init__(
        self, order: Order, total: int, batch_size: int, rank: int, world: int, seed: int
    ) -> None:
        """`total`: rows of an epoch; `batch_size`: rows of one rank in one step."""
        self.total = total
        self.seed = seed
        self.epoch = 0
        self.seen = 0
        self.span = batch_size * world
        self._order = order
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(self.seed, self.epoch)
        for start in range(self.seen, self.total, self.span):
            yield share(order[start : start + self.span], self.rank, self.world)

    def __len__(self) -> int:
        return (self.total + self.span - 1) // self.span

    def strides(self) -> Iterator[int]:
        """Rows on all ranks of each step that is left, a last one counted as if it were full."""
        return repeat(self.span)

    def check(self) -> None:
        """Refuse a position that no step of this sampler begins at."""
