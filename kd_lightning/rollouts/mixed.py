"""Some rows answered one way, some another: by a coin that all ranks agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kd_lightning.errors import KDError
from kd_lightning.rollouts.adaptive import OnValidation
from kd_lightning.rollouts.answers import Answer, Asked
from kd_lightning.rollouts.base import Moment, Rollout
from kd_lightning.rollouts.chance import share
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.schedules import Schedule


class Mixed(Rollout):
    r"""The student's words with probability lambda, else the data's.

    .. math:: (1 - \lambda)\, E_{y \sim \mathrm{data}}[\ell] + \lambda\, E_{y \sim q}[\ell]

    The coin is a function of the run's seed, the step and the row.

    Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, algorithm 1 (one coin for a batch: `per:
    step`).
    """

    def __init__(
        self,
        student_fraction: float | Schedule = 0.5,
        student: Rollout | None = None,
        other: Rollout | None = None,
        per: Literal["row", "step"] = "row",
    ) -> None:
        """Store the settings.

        Args:
            student_fraction: Probability of `student` [lambda]: a number, a schedule over the run,
                or OnValidation.
            student: How those rows are answered; null: FromStudent.
            other: How the others are; null: FromData.
            per: A coin for each row, or one for the whole step (on all ranks).
        """
        if not isinstance(student_fraction, Schedule) and not 0 <= student_fraction <= 1:
            raise KDError(f"student_fraction lies within 0 to 1, not {student_fraction}")
        self.student_fraction = student_fraction
        self.student = student
        self.other = other
        self.per = per
        self._parts = (student or FromStudent(), other or FromData())
        self.knows_behaviour = all(part.knows_behaviour for part in self._parts)

    @property
    def parts(self) -> tuple[Rollout, ...]:
        return self._parts

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        chosen = [self.own(row, moment) for row in rows]
        made: list[list[Answer]] = [[] for _ in rows]
        for part, own in zip(self._parts, (True, False), strict=True):
            mine = [i for i, coin in enumerate(chosen) if coin == own]
            found = part.answers([rows[i] for i in mine], moment)  # collective: also of no rows
            for i, answers in zip(mine, found, strict=True):
                made[i] = answers
        return made

    def own(self, row: Asked, moment: Moment) -> bool:
        """Whether the row is answered by `student`."""
        fraction = self.student_fraction
        limit = fraction(moment.progress) if isinstance(fraction, Schedule) else fraction
        name = row.name if self.per == "row" else "all rows"
        return share(moment.seed, moment.step, name, "coin") < limit

    def end_validation(self, loss: float) -> None:
        super().end_validation(loss)
        if isinstance(self.student_fraction, OnValidation):
            self.student_fraction.observe(loss)

    def state(self) -> dict[str, Any]:
        fraction = self.student_fraction
        return fraction.state() if isinstance(fraction, OnValidation) else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.student_fraction, OnValidation):
            self.student_fraction.restore(state)
