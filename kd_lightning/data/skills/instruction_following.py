"""Doing what an instruction asks."""

from __future__ import annotations

from typing import ClassVar

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.conversations import messages_of
from kd_lightning.data.rows import Row
from kd_lightning.metrics.answers import rouge_l
from kd_lightning.types import Example, Message


class InstructionFollowing(KDDataModule):
    """Instructions, each with an optional input, or whole conversations in `messages`.

    Reads the columns of Dolly, Alpaca, Self-Instruct, Vicuna bench and ShareGPT as they are. An
    `answer` that is a list holds several references, of which the first is learned. A test row may
    have no answer: it is answered but not graded.

    Source: the evaluation of Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 3.1.
    """

    fields: ClassVar = {
        "messages": ("conversations", "conversation"),
        "prompt": ("instruction", "question", "query", "turns.0"),
        "input": ("context", "instances.0.input"),
        "answer": (
            "output",
            "response",
            "completion",
            "reference",
            "references",
            "instances.0.output",
        ),
    }

    def render(self, row: Row) -> Example:
        if "messages" in row:
            return Example(row.id, messages_of(row, "messages"))
        prompt = row.text("prompt")
        if extra := row.text("input", default=""):
            prompt = f"{prompt}\n\n{extra}"
        if row.split == "test" and "answer" not in row:
            return Example(row.id, (Message("user", prompt),))
        answers = row.texts("answer")
        return Example.dialogue(id=row.id, user=prompt, assistant=answers[0], references=answers)

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        if not example.references and not example.answer:
            return {}
        return {"rouge_l": rouge_l(answer, example.accepted)}
