"""Medicine: questions of patients and what a trusted source answers."""

from __future__ import annotations

from typing import ClassVar

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.metrics.answers import rouge_l, token_f1
from kd_lightning.types import Example


class Medicine(KDDataModule):
    """Question answering, graded by the words that it shares with the reference.

    Source: Ben Abacha, Demner-Fushman 2019 (MedQuAD), arXiv 1901.08079.
    """

    fields: ClassVar = {
        "system": ("system_prompt",),
        "prompt": ("question", "Question", "QUESTION", "input", "instruction"),
        "answer": ("Answer", "LONG_ANSWER", "output", "response"),
    }

    def render(self, row: Row) -> Example:
        answers = row.texts("answer")
        meta = {name: row[name] for name in ("focus", "qtype", "url") if name in row}
        return Example.dialogue(
            id=row.id,
            user=row.text("prompt"),
            assistant=answers[0],
            references=answers,
            meta=meta,
        )

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        references = example.accepted
        return {
            "token_f1": token_f1(answer, references),
            "rouge_l": rouge_l(answer, references),
        }
