"""Several numbers as one, and the better of two versions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from kd_lightning.curate.texts import number_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Combined(Step):
    """Writes one number made of several; a subclass says how."""

    fields: Iterable[str]
    into: str

    @abstractmethod
    def combine(self, values: Sequence[float]) -> float:
        """The number."""

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            found = {name: number_of(record, name) for name in self.fields}
            missing = [name for name, value in found.items() if value is None]
            if missing:
                work.drop(record, f"no {missing[0]}")
            else:
                number = self.combine([value for value in found.values() if value is not None])
                told: dict[str, Any] = {self.into: number}
                made.append(record.changed(work.name, **told))
        return made


class WeightedSum(Combined):
    """A sum of numbers, each with its weight; 1 and -1 give the gap between two.

    Source: the gap as in Jiang et al. 2023 (Lion), arXiv 2305.12870.
    """

    fields: dict[str, float]

    def __init__(self, fields: dict[str, float], into: str = "score") -> None:
        """Store the settings.

        Args:
            fields: Each number to its weight; `scores.0` is the first of a list.
            into: Field that the sum is written to.
        """
        if not fields:
            raise KDError("fields must name at least one number")
        self.fields = fields
        self.into = into

    def combine(self, values: Sequence[float]) -> float:
        weights = self.fields.values()
        return math.fsum(w * v for w, v in zip(weights, values, strict=True))


class Product(Combined):
    """A product of numbers: high where all are.

    Source: complexity times quality in Liu et al. 2023 (DEITA), arXiv 2312.15685.
    """

    def __init__(self, fields: list[str], into: str = "score") -> None:
        """Store the settings.

        Args:
            fields: The numbers; `scores.0` is the first of a list.
            into: Field that the product is written to.
        """
        if not fields:
            raise KDError("fields must name at least one number")
        self.fields = fields
        self.into = into

    def combine(self, values: Sequence[float]) -> float:
        return math.prod(values)


class TakeBetter(Step):
    """Of two versions of some fields the one with the better number.

    Source: the choice of Li et al. 2024 (Selective Reflection-Tuning), arXiv 2402.10110.
    """

    def __init__(
        self,
        fields: dict[str, str],
        score: str,
        than: str,
        lowest: bool = False,
        flag: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            fields: Each field of the other version to the field that it replaces.
            score: The other version's number.
            than: The number that it has to beat; it stays as it is where they are equal.
            lowest: Whether the smaller number is better.
            flag: Field that says whether the other version was taken; None: none.
        """
        if not fields:
            raise KDError("fields must name at least one field of the other version")
        self.fields = fields
        self.score = score
        self.than = than
        self.lowest = lowest
        self.flag = flag

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            other, own = number_of(record, self.score), number_of(record, self.than)
            missing = [name for name in self.fields if record.get(name) is None]
            if other is None or own is None or missing:
                names = [*([] if other is not None else [self.score]), *missing, self.than]
                work.drop(record, f"no {names[0]}")
                continue
            better = other < own if self.lowest else other > own
            work.count("taken", better)
            values: dict[str, Any] = {self.flag: better} if self.flag is not None else {}
            if better:
                values |= {to: record[name] for name, to in self.fields.items()}
            made.append(record.changed(work.name, **values) if values else record)
        return made
