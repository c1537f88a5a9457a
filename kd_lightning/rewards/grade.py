"""The skill's own grader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Around, Asked, Reward
from kd_lightning.types import Batch


class Grade(Reward):
    """What the data module's `grade` says of the answer: 0 to 1."""

    def __init__(self, metric: str | None = None) -> None:
        """Store the settings.

        Args:
            metric: Which of its metrics; None: the first, the skill's headline.
        """
        super().__init__()
        self.metric = metric

    def check(self, around: Around) -> None:
        super().check(around)
        if around.data is None:
            raise KDError("Grade asks the data module, and the run has none: write --data=<class>")

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        return [self._grade(each) for each in asked]

    def _grade(self, asked: Asked) -> float:
        assert self._around.data is not None, "call check first"
        grades = self._around.data.grade(asked.example, asked.answer)
        if not grades:  # the row cannot be graded
            self.count("ungraded")
            return math.nan
        name = next(iter(grades)) if self.metric is None else self.metric
        if name not in grades:
            raise KDError(
                f"Grade: the skill gives no metric {name!r}: write one of {', '.join(grades)}"
            )
        return grades[name]
