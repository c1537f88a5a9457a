"""Steps that judge a text right or wrong and let the right ones through, or write down how right.

A field with a list (`candidates`) has each of its texts judged: the wrong ones are taken out, with
what goes along with them (`scores`, `sources`), and a record without any left falls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kd_lightning.curate.texts import picked
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work

Mode = Literal["filter", "score"]
ALONG = ("scores", "sources", "finished", "logprobs", "rationales")
"""Lists that usually go along with `candidates`."""


@dataclass(frozen=True)
class Judged:
    """What became of one text."""

    score: float
    """0: wrong; 1: right; some judges say what lies between."""
    reason: str = ""
    """Why it is not right, in a few words that many share."""
    detail: str = ""
    """What the author of the text should know to do better: the error."""
    broken: str = ""
    """Why it could not be judged at all; the record falls in either mode."""


@dataclass(frozen=True)
class Item:
    """A text to be judged."""

    record: Record
    """Where it stands."""
    text: str
    """It."""
    place: int
    """Which of the record's texts it is."""


class Check(Step):
    """A subclass writes `judge`; it has `field`, `mode`, `into` and, if it likes, `threshold`."""

    field: str
    mode: Mode
    into: str
    threshold: float = 1.0
    detail: str | None = None

    @abstractmethod
    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        """Each text's verdict."""

    def lacks(self, record: Record) -> str:
        """Why a record cannot be judged at all ('no tests'); '' where it can."""
        return ""

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        whole: list[Record] = []
        items: list[Item] = []
        for record in records:
            texts, reason = self._texts(record), self.lacks(record)
            if reason or not texts:
                work.drop(record, reason or f"no {self.field}")
                continue
            whole.append(record)
            items.extend(Item(record, text, i) for i, text in enumerate(texts))
        judged = iter(self.judge(items, work))
        given = []
        for record in whole:
            own = [next(judged) for _ in self._texts(record)]
            if broken := next((j.broken for j in own if j.broken), ""):
                work.drop(record, broken)
                continue
            made = (self._scored if self.mode == "score" else self._passed)(record, own, work)
            if made is not None:
                given.append(made)
        return given

    def _texts(self, record: Record) -> list[str]:
        value = record.get(self.field)
        if isinstance(value, list):
            return [text if isinstance(text, str) else str(text) for text in value]
        return [record.text(self.field)] if value not in (None, "") else []

    def _scored(self, record: Record, own: Sequence[Judged], work: Work) -> Record:
        several = isinstance(record.get(self.field), list)
        scores, details = [j.score for j in own], [j.detail for j in own]
        values: dict[str, Any] = {self.into: scores if several else scores[0]}
        if self.detail is not None:
            values[self.detail] = details if several else details[0]
        work.count("right", sum(score >= self.threshold for score in scores))
        work.count("wrong", sum(score < self.threshold for score in scores))
        return record.changed(work.name, **values)

    def _passed(self, record: Record, own: Sequence[Judged], work: Work) -> Record | None:
        right = [i for i, judged in enumerate(own) if judged.score >= self.threshold]
        if not right:
            work.drop(record, next((j.reason for j in own if j.reason), "judged wrong"))
            return None
        value = record.get(self.field)
        if not isinstance(value, list) or len(right) == len(own):
            return record
        work.count("candidates dropped", len(own) - len(right))
        along = picked(record, right, len(own), (self.field, *ALONG, self.into))
        return record.changed(work.name, **along)
