"""Where two orders, two rankings or several judges say the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kd_lightning.curate.filter import Filter
from kd_lightning.curate.texts import as_number, at_least
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class SwapConsistent(Step):
    """Keep pairs whose judge says the same in both orders.

    `verdicts` holds what was said, each about the pair in its first order: the judge of the swapped
    order is already turned back. Numbers agree if they lie on the same side of 0.

    Source: as in Zheng et al. 2023 (MT-bench), arXiv 2306.05685, section 3.4.
    """

    def __init__(
        self,
        field: str = "verdicts",
        into: str = "verdict",
        ties: list[str] | None = None,
        keep_ties: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            field: List of the verdicts.
            into: Field that the common verdict is written to.
            ties: Verdicts that prefer none; None: tie, equal, both, C.
            keep_ties: Whether pairs of which none is preferred stay.
        """
        self.field = field
        self.into = into
        self.ties = ["tie", "equal", "both", "C"] if ties is None else ties
        self.keep_ties = keep_ties

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        kept = []
        ties = {tie.lower() for tie in self.ties}
        for record in records:
            told = record.get(self.field, [])
            if not isinstance(told, list) or len(told) < 2:
                work.drop(record, f"fewer than two {self.field}")
                continue
            said = {_side(one) for one in told}
            if len(said) > 1:
                work.drop(record, "orders disagree")
            elif said & {*ties, "0"} and not self.keep_ties:
                work.drop(record, "tie")
            else:
                kept.append(record.changed(work.name, **{self.into: told[0]}))
        return kept


def _side(verdict: Any) -> str:
    number = None if isinstance(verdict, str) else as_number(verdict)
    if number is None:
        return str(verdict).strip().lower()
    return str((number > 0) - (number < 0))


def longest_common(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """The longest common subsequence of two rankings; of equals the one that comes first in `a`."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            same = a[i] == b[j]
            table[i][j] = table[i + 1][j + 1] + 1 if same else max(table[i + 1][j], table[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append(a[i])
            i, j = i + 1, j + 1
        elif table[i][j + 1] >= table[i + 1][j]:
            j += 1
        else:
            i += 1
    return found


class RankAgreement(Step):
    """What two rankings of the same candidates agree on: their longest common subsequence.

    Source: Hong et al. 2023 (CycleAlign), arXiv 2310.16271.
    """

    def __init__(
        self,
        first: str = "ranking",
        second: str = "other_ranking",
        into: str = "agreed",
        least: int = 2,
    ) -> None:
        """Store the settings.

        Args:
            first: Field with a ranking, the best first: a list, or a text like `B > A > C`.
            second: Field with the other.
            into: Field that the common part is written to.
            least: Fewest candidates in it.
        """
        at_least("least", least, 1)
        self.first = first
        self.second = second
        self.into = into
        self.least = least

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        kept, shared = [], 0.0
        for record in records:
            a, b = _ranking(record.get(self.first)), _ranking(record.get(self.second))
            if not a or not b:
                work.drop(record, f"no {self.second if a else self.first}")
            elif len(agreed := longest_common(a, b)) < self.least:
                work.drop(record, "rankings disagree")
            else:
                shared += len(agreed) / max(len(a), len(b))
                told: dict[str, Any] = {self.into: agreed}
                kept.append(record.changed(work.name, **told))
        if kept:
            work.note("mean share that is agreed on", round(shared / len(kept), 6))
        return kept


def _ranking(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in re.split(r"[>,]", value) if part.strip()]
    return list(value) if isinstance(value, list) else []


class Judges(Filter):
    """Several judges' scores as one, of records on which they do not differ too much."""

    def __init__(
        self,
        fields: list[str] | None = None,
        into: str = "score",
        spread: float | None = None,
        least: int = 2,
    ) -> None:
        """Store the settings.

        Args:
            fields: Where the scores stand: a number each, a list of them, or names to numbers;
                None: `ratings`.
            into: Field that their mean is written to.
            spread: Largest difference between two of them; None: any.
            least: Fewest scores that a record needs.
        """
        at_least("least", least, 1)
        self.fields = ["ratings"] if fields is None else fields
        self.into = into
        self.spread = spread
        self.least = least

    def _scores(self, record: Record) -> list[float]:
        found = (n for field in self.fields for n in _numbers(record.get(field)))
        return [n for n in found if n is not None]

    def fault(self, record: Record) -> str:
        scores = self._scores(record)
        if len(scores) < self.least:
            return "too few scores"
        wide = self.spread is not None and max(scores) - min(scores) > self.spread
        return "judges disagree" if wide else ""

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in super().run(records, work):
            told: dict[str, Any] = {self.into: fmean(self._scores(record))}
            made.append(record.changed(work.name, **told))
        return made


def _numbers(value: Any) -> list[float | None]:
    if isinstance(value, dict) and "rating" in value:
        return [as_number(value["rating"])]
    if isinstance(value, dict):
        return [n for inner in value.values() for n in _numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in _numbers(inner)]
    return [as_number(value)]
