"""Records drawn at random, from groups, or put in an order."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.curate.select import amount, check_amount, groups, only, placed, scored
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Stratified(Step):
    """Keep equally many of each group, or the same share of each; drawn, or the best."""

    def __init__(
        self,
        by: str = "topic",
        k: int | None = None,
        share: float | None = None,
        score: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            by: Field whose values form the groups.
            k: How many of each stay (all, where it has fewer).
            share: In place of it, which share of each.
            score: Field with a number, whose largest stay; None: drawn at random.
        """
        check_amount(k, share)
        self.by = by
        self.k = k
        self.share = share
        self.score = score

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having = placed(records, self.by, work)
        values = [0.0] * len(having)
        if self.score is not None:
            having, values = scored(having, self.score, work)
        kept: set[int] = set()
        for name, group in groups(having, self.by).items():
            order = list(group)
            work.rng(name).shuffle(order)
            if self.score is not None:
                order = sorted(group, key=lambda i: (-values[i], i))
            kept.update(order[: amount(self.k, self.share, len(group))])
        return only(having, kept, f"its {self.by} has enough", work)


class Sample(Step):
    """Keep records drawn at random: the control of equal size for every selection."""

    def __init__(self, k: int | None = None, share: float | None = None) -> None:
        """Store the settings.

        Args:
            k: How many stay.
            share: In place of it, which share.
        """
        check_amount(k, share)
        self.k = k
        self.share = share

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        count = amount(self.k, self.share, len(records))
        return only(records, set(work.rng().sample(range(len(records)), count)), "not drawn", work)


class Curriculum(Step):
    """Put records in the order of a number: easy ones first."""

    def __init__(self, by: str = "score", descending: bool = False) -> None:
        """Store the settings.

        Args:
            by: Field with the number.
            descending: Largest first.
        """
        self.by = by
        self.descending = descending

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.by, work)
        sign = -1 if self.descending else 1
        return [having[i] for i in sorted(range(len(having)), key=lambda i: (sign * values[i], i))]
