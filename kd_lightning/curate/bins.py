"""Ranges of a number, by name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from kd_lightning.curate.select import scored
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Bins(Step):
    """Write the name of the range that a record's number lies in: what Stratified groups by.

    Source: hard and easy by the gap to the teacher: Jiang et al. 2023 (Lion), arXiv 2305.12870.
    """

    def __init__(
        self,
        score: str = "score",
        bounds: list[float] | None = None,
        names: list[str] | None = None,
        into: str = "bin",
    ) -> None:
        """Store the settings.

        Args:
            score: Field with the number; `scores.0` is the first of a list.
            bounds: Where the ranges meet, rising; a bound belongs to the range above it.
                Not given: 1.
            names: Of the ranges, the lowest first: one more than bounds. Not given: easy, hard.
            into: Field that the name is written to.
        """
        self.score = score
        self.bounds = [1.0] if bounds is None else bounds
        self.names = ["easy", "hard"] if names is None else names
        self.into = into
        if len(self.names) != len(self.bounds) + 1 or sorted(set(self.bounds)) != self.bounds:
            raise KDError("bounds must rise, and names must be one more than they are")

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.score, work)
        made = []
        for record, value in zip(having, values, strict=True):
            name = self.names[bisect_right(self.bounds, value)]
            work.count(name)
            made.append(record.changed(work.name, **{self.into: name}))
        return made
