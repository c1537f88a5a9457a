"""Feedback on one answer: a critique, ratings by aspect, the places that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.elicit.ask import Ask
from kd_lightning.elicit.asking import Item
from kd_lightning.elicit.judge import JUDGING, Judge, candidates
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.types import Sampling

ASPECTS = {
    "helpfulness": "does it do what was asked, completely and to the point",
    "correctness": "is what it says true, and does it follow",
    "honesty": "does it say what it does not know, and claim no more than it can",
    "instructions": "does it keep to the form, the length and the limits that were asked for",
}
"""What answers are rated by where nothing is said."""


class Critique(Ask):
    """What is wrong with an answer, and whether it needs revision: `critique` and `verdict`."""

    def __init__(
        self,
        template: str = "critique",
        sampling: Sampling = JUDGING,
        most_malformed: float = 0.2,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `answer`; writes `critique` and `verdict`.
            sampling: How it is drawn.
            most_malformed: Share of the questions that may come to no answer in form.
            more: As for `Ask`.
        """
        super().__init__(template, sampling=sampling, most_malformed=most_malformed, **more)


class ErrorSpans(Ask):
    """The errors of an answer as a list: words, kind, severity, explanation.

    Words that do not stand in the answer make a judgement malformed.

    Source: Jiang et al. 2023 (TIGERScore), arXiv 2310.00752.
    """

    def __init__(
        self,
        template: str = "error_spans",
        sampling: Sampling = JUDGING,
        field: str = "answer",
        most_malformed: float = 0.2,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `answer`; writes `errors`.
            sampling: How it is drawn.
            field: The value that the errors stand in.
            most_malformed: Share of the questions that may come to no answer in form.
            more: As for `Ask`.
        """
        super().__init__(template, sampling=sampling, most_malformed=most_malformed, **more)
        self.field = field

    def checked(self, items: list[Item], group: Sequence[Record]) -> list[Item]:
        text = group[0].text((self.reads or {}).get(self.field, self.field))
        for item in items:
            for error in item.get("errors", ()):
                if error["span"] not in text:
                    raise Malformed("an error's words do not stand in the answer")
        return items


class Rate(Judge):
    """Rate an answer, or each candidate, by the aspects of a rubric.

    Writes `ratings` (aspect to number) and `score` (their mean); with candidates, `ratings` is a
    list of such and `scores` the list of means. Several judgements are averaged.

    Source: Cui et al. 2023 (UltraFeedback), arXiv 2310.01377; several judgements: Yuan et al. 2024
    (Self-Rewarding), arXiv 2401.10020.
    """

    def __init__(
        self,
        aspects: dict[str, str] | None = None,
        template: str = "rate",
        sampling: Sampling = JUDGING,
        n: int = 1,
        field: str = "answer",
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            aspects: Name to what it asks. Not given: helpfulness, correctness, honesty and
                instructions.
            template: Reads `prompt`, `text` and `aspects`; writes `ratings`.
            sampling: How judgements are drawn.
            n: Judgements of each text, averaged.
            field: What is rated: a value, or `candidates`.
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.aspects = aspects or dict(ASPECTS)
        self.n = n
        self.field = field
        self.manner.check(n, "Rate")

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template = Template(self.template)
        groups = [
            [
                self.question(template, record, str(i), values, self._whole, self.n)
                for i, text in enumerate(self._texts(record))
                for values in [{"text": text, "aspects": self.aspects}]
            ]
            for record in records
        ]
        made = []
        for record, said in zip(records, self.put(groups, records, work), strict=True):
            if said is None:
                continue
            rated = [
                self._mean([answer.items[0]["ratings"] for answer in one.answers]) for one in said
            ]
            means = [sum(found.values()) / len(found) for found in rated]
            if self.field == "candidates":
                told: Item = {"ratings": rated, "scores": means}
            else:
                told = {"ratings": rated[0], "score": means[0]}
            made.append(record.changed(work.name, said[0].by, **told))
        return made

    def _texts(self, record: Record) -> list[str]:
        if self.field == "candidates":
            return candidates(record, "Rate")
        if not record.text(self.field):
            raise KDError(f"Rate: record {record.id} has no {self.field}: set field to what it has")
        return [record.text(self.field)]

    def _whole(self, item: Item) -> None:
        if set(item["ratings"]) != {name.casefold() for name in self.aspects}:
            raise Malformed("not each aspect rated, or others")

    def _mean(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        return {
            name: sum(rated[name.casefold()] for rated in found) / len(found)
            for name in self.aspects
        }
