"""The best records, or some of them: by a number that each holds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from kd_lightning.curate.descent import root
from kd_lightning.curate.texts import at_least, between, number_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


def check_amount(k: int | None, share: float | None) -> None:
    """Refuse both and neither."""
    if (k is None) == (share is None):
        raise KDError("write either k (how many stay) or share (which share of them)")
    if k is not None:
        at_least("k", k, 0)
    if share is not None:
        between("share", share, 0, 1)


def amount(k: int | None, share: float | None, of: int) -> int:
    """How many stay: at most all; a share is rounded to the nearest whole number, halves up."""
    return min(of, k) if k is not None else math.floor((share or 0.0) * of + 0.5)


def scored(records: Sequence[Record], score: str, work: Work) -> tuple[list[Record], list[float]]:
    """Records that hold the number, and the numbers; the others fall."""
    kept, values = [], []
    for record in records:
        value = number_of(record, score)
        if value is None:
            work.drop(record, f"no {score}")
        else:
            kept.append(record)
            values.append(value)
    return kept, values


def only(records: Sequence[Record], places: set[int], reason: str, work: Work) -> list[Record]:
    """The records at some places; the others fall for one reason."""
    for i, record in enumerate(records):
        if i not in places:
            work.drop(record, reason)
    return [record for i, record in enumerate(records) if i in places]


class Threshold(Step):
    """Keep records whose number lies within bounds."""

    def __init__(
        self, score: str = "score", least: float | None = None, most: float | None = None
    ) -> None:
        """Store the settings.

        Args:
            score: Field with the number.
            least: Smallest that stays; None: any.
            most: Largest that stays; None: any.
        """
        if least is None and most is None:
            raise KDError("Threshold needs a bound: write least or most")
        self.score = score
        self.least = least
        self.most = most

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.score, work)
        kept = []
        for record, value in zip(having, values, strict=True):
            if self.least is not None and value < self.least:
                work.drop(record, f"{self.score} below {self.least:g}")
            elif self.most is not None and value > self.most:
                work.drop(record, f"{self.score} above {self.most:g}")
            else:
                kept.append(record)
        return kept


class Top(Step):
    """Keep the records with the largest numbers, or the smallest; of equals the earlier ones."""

    def __init__(
        self,
        score: str = "score",
        k: int | None = None,
        share: float | None = None,
        lowest: bool = False,
        within: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            score: Field with the number.
            k: How many stay.
            share: In place of it, which share of the records.
            lowest: Keep those with the smallest instead.
            within: Field that forms groups (`root`: the record that each came from): so many of
                each group stay; None: of all together.
        """
        check_amount(k, share)
        self.score = score
        self.k = k
        self.share = share
        self.lowest = lowest
        self.within = within

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(placed(records, self.within, work), self.score, work)
        sign = 1 if self.lowest else -1
        kept: set[int] = set()
        for group in groups(having, self.within).values():
            order = sorted(group, key=lambda i: (sign * values[i], i))
            kept.update(order[: amount(self.k, self.share, len(group))])
        word = "smaller" if self.lowest else "larger"
        return only(having, kept, f"others have a {word} {self.score}", work)


class Quantile(Step):
    """Keep the records between two quantiles of a number: the middle, say, without the ends."""

    def __init__(self, score: str = "score", low: float = 0.0, high: float = 1.0) -> None:
        """Store the settings.

        Args:
            score: Field with the number.
            low: Share of the records that lie below.
            high: Share of the records that do not lie above.
        """
        between("low", low, 0, 1)
        between("high", high, low, 1)
        self.score = score
        self.low = low
        self.high = high

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.score, work)
        order = sorted(range(len(having)), key=lambda i: (values[i], i))
        start, stop = amount(None, self.low, len(order)), amount(None, self.high, len(order))
        return only(having, set(order[start:stop]), f"{self.score} outside the quantiles", work)


def placed(records: Sequence[Record], by: str | None, work: Work) -> list[Record]:
    """Records that say which group they are of; the others fall."""
    if by in (None, "root"):
        return list(records)
    kept = []
    for record in records:
        if record.get(by) is None:
            work.drop(record, f"no {by}")
        else:
            kept.append(record)
    return kept


def groups(records: Sequence[Record], by: str | None) -> dict[str, list[int]]:
    """Places of the records of each group, in order of appearance."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        found["" if by is None else root(record) if by == "root" else record.text(by)].append(i)
    return found
