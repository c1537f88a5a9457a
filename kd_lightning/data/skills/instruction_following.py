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

    Reads the columns of Dolly, Alpaca, Self-Instruct, Vicuna bench, ShareGPT and OpenOrca as they
    are. `system` is the row's own system prompt. An `answer` that is a list holds several
    references, of which the first is learned; it also ends `messages` that stop before it. A test
    row may have no answer: it is answered but not graded.

    Source: the evaluation of Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 3.1.
    """

    fields: ClassVar = {
        "messages": ("conversations", "conversation"),
        "system": ("system_prompt",),
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
        asked = self._asked(row)
        optional = "messages" in row or row.split == "test"
        if asked[-1].role == "assistant" or (optional and "answer" not in row):
            return Example(row.id, asked)
        answers = row.texts("answer")
        return Example(row.id, (*asked, Message("assistant", answers[0])), references=answers)

    def _asked(self, row: Row) -> tuple[Message, ...]:
        """The turns of the row, or its prompt as one."""
        if "messages" in row:
            return messages_of(row, "messages")
        prompt = row.text("prompt")
        if extra := row.text("input", default=""):
            prompt = f"{prompt}\n\n{extra}"
        return (Message("user", prompt),)

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        if not example.references and not example.answer:
            return {}
        return {"rouge_l": rouge_l(answer, example.accepted)}
