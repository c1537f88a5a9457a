"""All candidates of a record rated side by side, one aspect at a time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kd_lightning.elicit.asking import Item
from kd_lightning.elicit.feedback import ASPECTS
from kd_lightning.elicit.judge import JUDGING, Judge, candidates
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.types import Sampling


class RateTogether(Judge):
    """Rate all candidates in one judgement for each aspect: what is told is how they differ.

    Writes `ratings`, for each candidate aspect to number (an aspect that does not apply to it is
    left out), and `scores`, the mean of each; a candidate without any rating makes its record fall.

    Source: Cui et al. 2023 (UltraFeedback), arXiv 2310.01377, section 2.3.
    """

    def __init__(
        self,
        aspects: dict[str, str] | None = None,
        template: str = "rate_together",
        sampling: Sampling = JUDGING,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            aspects: Name to what it asks. Not given: helpfulness, correctness, honesty and
                instructions.
            template: Reads `prompt`, `candidates`, `aspect` and `question`; writes `marks`, a
                number or None for each candidate.
            sampling: How judgements are drawn.
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.aspects = aspects or dict(ASPECTS)

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template = Template(self.template)
        groups = []
        for record in records:
            check = _Count(len(candidates(record, "RateTogether")))
            groups.append(
                [
                    self.question(template, record, name, values, check)
                    for name, question in self.aspects.items()
                    for values in [{"aspect": name, "question": question}]
                ]
            )
        made = []
        for record, said in zip(records, self.put(groups, records, work), strict=True):
            if said is None:
                continue
            ratings: list[dict[str, float]] = [{} for _ in record["candidates"]]
            for name, one in zip(self.aspects, said, strict=True):
                for rated, mark in zip(ratings, one.item["marks"], strict=True):
                    if mark is not None:
                        rated[name] = mark
            if not all(ratings):
                work.drop(record, "a candidate without rating")
                continue
            told: Item = {"ratings": ratings, "scores": [fmean(r.values()) for r in ratings]}
            made.append(record.changed(work.name, said[0].by, **told))
        return made


class _Count:
    """A mark for each candidate."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, item: Item) -> None:
        if len(item["marks"]) != self._count:
            raise Malformed("not each candidate rated, or others")
