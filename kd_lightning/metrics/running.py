"""The sums of one evaluation: losses, statistics and grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kd_lightning.metrics.agreement import by_skill
from kd_lightning.metrics.grades import GradeBook

OverRanks = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Running:
    """What a rank has measured so far."""

    def __init__(self, statistics: Tensor) -> None:
        """Store the settings.

        Args:
            statistics: Zeros `[S, M]` (see metrics.agreement).
        """
        self.terms: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.statistics = statistics
        self.grades = GradeBook()
        self.graded = 0

    def add(
        self, terms: Mapping[str, Tensor], counts: Mapping[str, Tensor], statistics: Tensor
    ) -> None:
        """Enter a batch's sums."""
        for mine, new in ((self.terms, terms), (self.counts, counts)):
            for name, value in new.items():
                held = mine.get(name, torch.zeros_like(value))
                mine[name] = held + value.detach()
        self.statistics = self.statistics + statistics

    def grade(self, skill: str, grades: Mapping[str, float]) -> None:
        """Enter the grades of an answer."""
        self.grades.add(skill, grades)
        self.graded += 1

    def table(
        self, prefix: str, over_ranks: OverRanks, skills: tuple[str, ...], with_teacher: bool
    ) -> dict[str, float]:
        """Everything under `prefix/`, the same on all ranks; a collective call."""
        terms, counts = over_ranks(self.terms), over_ranks(self.counts)
        statistics = over_ranks({"sums": self.statistics})["sums"]
        table = by_skill(statistics, skills, prefix, with_teacher)
        values = {name: float(terms[name] / counts[name].clamp_min(1e-9)) for name in counts}
        table[f"{prefix}/loss"] = sum(values.values())
        if len(values) > 1:
            table |= {f"{prefix}/loss/{name}": value for name, value in values.items()}
        return table | self.grades.means(prefix)


def step_table(values: Mapping[str, Tensor], norm: Tensor, lr: float) -> dict[str, float]:
    """What an optimizer step is: its loss and its terms, the gradient's norm, the learning rate."""
    loss = float(sum(values.values()))
    table = {"train/loss": loss, "train/lr": lr, "train/gradient_norm": float(norm)}
    if len(values) > 1:
        table |= {f"train/loss/{name}": float(value) for name, value in values.items()}
    return table
