"""Graded answers, added up per skill and over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch.distributed as dist

from kd_lightning.types import Completion, Example, Sampling


class Speaker(Protocol):
    """A model that answers prompts of token ids."""

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Completion]: ...


class Grader(Protocol):
    """A data module: how a question is put, and how an answer is judged."""

    def prompt_ids(self, example: Example) -> list[int]: ...

    def grade(self, example: Example, answer: str) -> dict[str, float]: ...


def graded_answers(
    model: Speaker, data: Grader, examples: Sequence[Example], sampling: Sampling
) -> list[dict[str, Any]]:
    """Each example's answer with its grades, as rows that a file can hold."""
    made = model.complete([data.prompt_ids(e) for e in examples], sampling)
    return [
        {
            "id": example.id,
            "skill": example.skill,
            "answer": completion.text,
            "finished": completion.finished,
            "references": list(example.accepted),
            "grades": data.grade(example, completion.text),
        }
        for example, completion in zip(examples, made, strict=True)
    ]


class GradeBook:
    """Means of what the skills' graders said."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, skill: str, grades: Mapping[str, float]) -> None:
        """Enter the grades of one answer."""
        for name, value in grades.items():
            total, count = self._sums.get((skill, name), (0.0, 0))
            self._sums[skill, name] = (total + value, count + 1)

    def means(self, prefix: str) -> dict[str, float]:
        """`prefix/<grade>` over all skills and `prefix/<grade>/<skill>`; a collective call."""
        parts = [self._sums]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._sums)
        merged: dict[tuple[str, str], tuple[float, int]] = {}
        overall: dict[str, tuple[float, int]] = {}
        for part in parts:
            for (skill, name), (total, count) in part.items():
                a, b = merged.get((skill, name), (0.0, 0))
                merged[skill, name] = (a + total, b + count)
                a, b = overall.get(name, (0.0, 0))
                overall[name] = (a + total, b + count)
        table = {f"{prefix}/{name}": total / count for name, (total, count) in overall.items()}
        if len({skill for skill, _ in merged}) > 1:
            table |= {
                f"{prefix}/{n}/{s}": total / count for (s, n), (total, count) in merged.items()
            }
        return table
