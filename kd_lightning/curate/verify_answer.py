"""Answers whose outcome is known."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.curate.check import Check, Item, Judged, Mode
from kd_lightning.curate.extract import Extract, Number, same
from kd_lightning.curate.texts import at_least
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work


class FinalAnswer(Check):
    """Keep answers that come to what the reference comes to.

    Source: as the filter of Zelikman et al. 2022 (STaR), arXiv 2203.14465.
    """

    def __init__(
        self,
        field: str = "answer",
        reference: str = "reference",
        extract: Extract | None = None,
        tolerance: float = 0.0,
        mode: Mode = "filter",
        into: str = "scores",
    ) -> None:
        """Store the settings.

        Args:
            field: The answer, or a list of them.
            reference: What is right: a text, a number, or a list of accepted ones. It is read like
                the answer, and as it stands where nothing can be read out of it.
            extract: How the outcome is read: Number, Boxed, After, Found, Whole; None: Number.
            tolerance: How far numbers may differ, as a share of the larger.
            mode: `filter`: wrong ones fall; `score`: 1 and 0 are written down, all go on.
            into: Field of the scores.
        """
        at_least("tolerance", tolerance, 0)
        self.field = field
        self.reference = reference
        self.extract = extract or Number()
        self.tolerance = tolerance
        self.mode = mode
        self.into = into

    def lacks(self, record: Record) -> str:
        return "" if record.get(self.reference) not in (None, "", []) else f"no {self.reference}"

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Judged:
        value = item.record[self.reference]
        accepted = [str(v) for v in (value if isinstance(value, list) else [value])]
        told = self.extract.of(item.text)
        if told is None:
            return Judged(0.0, "no final answer")
        wanted = [self.extract.of(text) or text for text in accepted]
        if any(same(told, text, self.tolerance) for text in wanted):
            return Judged(1.0)
        return Judged(0.0, "wrong final answer")
