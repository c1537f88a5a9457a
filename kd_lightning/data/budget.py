"""Batches of so many tokens instead of so many rows."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from kd_lightning.data.sampler import FILLER, GlobalSampler, Order
from kd_lightning.errors import KDError

Rows = NDArray[np.int64]

TRIED = 8
"""Epochs that are cut on trial: the one with most batches says how many every epoch has."""


def greedy(order: Rows, lengths: Rows, budget: int) -> list[Rows]:
    """The order cut where one more row would go over the budget; a longer row stands alone."""
    ends = lengths[order].cumsum()
    cuts = [0]
    while cuts[-1] < len(order):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        fitting = int(np.searchsorted(ends, before + budget, side="right"))
        cuts.append(max(fitting, cuts[-1] + 1))
    return np.split(order, cuts[1:-1])


def best_fit(order: Rows, lengths: Rows, budget: int) -> list[Rows]:
    """Long rows first, each into the fullest batch that has room: fewest batches, or nearly."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, batch), ascending
    for row in order[np.argsort(-lengths[order], kind="stable")]:
        need = int(lengths[row])
        place = bisect_left(room, (need, -1))
        free, batch = room.pop(place) if place < len(room) else (budget, len(batches))
        if batch == len(batches):
            batches.append([])
        batches[batch].append(int(row))
        if free > need:
            insort(room, (free - need, batch))
    return [np.asarray(batch, np.int64) for batch in batches]


def halved(batches: list[Rows], lengths: Rows, count: int) -> list[Rows]:
    """As many as `count` batches: the heaviest with two rows or more are cut in two."""
    found = list(batches)
    weights = [int(lengths[b].sum()) if len(b) > 1 else 0 for b in found]
    while len(found) < count:
        heaviest = max(range(len(found)), key=weights.__getitem__)
        rows = found[heaviest]
        ends = lengths[rows].cumsum()
        cut = min(max(int(np.searchsorted(ends, ends[-1] / 2)), 1), len(rows) - 1)
        parts = [rows[:cut], rows[cut:]]
        found[heaviest : heaviest + 1] = parts
        weights[heaviest : heaviest + 1] = [
            int(lengths[part].sum()) if len(part) > 1 else 0 for part in parts
        ]
    return found


def merged(batches: list[Rows], lengths: Rows, count: int) -> list[Rows]:
    """As few as `count` batches: the lightest are put together."""
    heap = [(int(lengths[b].sum()), place) for place, b in enumerate(batches)]
    heapq.heapify(heap)
    found = dict(enumerate(batches))
    while len(found) > count:
        light, gone = heapq.heappop(heap)
        other, place = heapq.heappop(heap)
        found[place] = np.concatenate([found[place], found.pop(gone)])
        heapq.heappush(heap, (light + other, place))
    return list(found.values())


def dealt(batch: Rows, lengths: Rows, world: int) -> list[list[int]]:
    """A global batch's rows for each rank, nearly as many tokens each; a filler where none is left.

    Source: Graham 1969, SIAM Journal on Applied Mathematics 17(2), section 5 (longest first, each
    to the least busy).
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    busy = [(0, rank) for rank in range(world)]
    for row in batch[np.argsort(-lengths[batch], kind="stable")]:
        taken, rank = heapq.heappop(busy)
        shares[rank].append(int(row))
        heapq.heappush(busy, (taken + int(lengths[row]), rank))
    return [share or [FILLER] for share in shares]


class TokenBudget(GlobalSampler):
    """Index lists of one rank, one for each optimizer step, of up to so many tokens on all ranks.

    Every epoch has equally many steps, so that schedules know their end: an epoch that needs fewer
    has its heaviest batches halved, one that needs more is packed tighter. All of that is a
    function of seed and epoch, and the position stays (epoch, rows seen on all ranks).
    """

    def __init__(
        self, order: Order, lengths: Rows, budget: int, rank: int, world: int, seed: int
    ) -> None:
        """`lengths`: tokens of each row; `budget`: tokens of one rank in one step."""
        total = len(order(seed, 0))
        super().__init__(order, total, 1, rank, world, seed)
        self.budget = budget * world
        self._lengths = np.maximum(lengths, 1)
        self._plan: tuple[tuple[int, int], list[Rows]] | None = None
        cuts = [len(greedy(order(seed, e), self._lengths, self.budget)) for e in range(TRIED)]
        fewest = len(best_fit(order(seed, 0), self._lengths, self.budget))
        self._steps = max(*cuts, fewest)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._left():
            yield dealt(batch, self._lengths, self.world)[self.rank]

    def strides(self) -> Iterator[int]:
        for batch in self._left():
            yield len(batch)

    def check(self) -> None:
        ends = {0, *np.cumsum([len(batch) for batch in self.plan()]).tolist()}
        if self.seen not in ends:
            raise KDError(
                f"the checkpoint stands at row {self.seen} of an epoch, inside a step of "
                f"{self.budget} tokens: choose data.batch_tokens so that batch_tokens x processes "
                "is what the run began with"
            )

    def plan(self) -> list[Rows]:
        """The epoch's global batches."""
        now = (self.seed, self.epoch)
        if self._plan is None or self._plan[0] != now:
            self._plan = now, self._cut(self._order(*now))
        return self._plan[1]

    def _left(self) -> list[Rows]:
        plan = self.plan()
        ends = np.cumsum([len(batch) for batch in plan])
        return plan[int(np.searchsorted(ends, self.seen, side="right")) :]

    def _cut(self, order: Rows) -> list[Rows]:
        lengths, steps = self._lengths, self._steps
        batches = greedy(order, lengths, self.budget)
        if len(batches) > steps:
            batches = best_fit(order, lengths, self.budget)
            mixing = np.random.default_rng([self.seed, self.epoch, len(batches)])
            batches = [batches[i] for i in mixing.permutation(len(batches))]
        if len(batches) > steps:  # a mixture's epochs are not made of the same rows
            batches = merged(batches, lengths, steps)
            most = max(int(lengths[batch].sum()) for batch in batches)
            rank_zero_warn(
                f"epoch {self.epoch} has more tokens than {steps} steps of {self.budget} hold: its "
                f"heaviest step has {most}"
            )
        return halved(batches, lengths, steps)
