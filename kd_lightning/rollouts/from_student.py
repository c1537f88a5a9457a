"""The student's own words."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.drawn import DrawnAnswers


class FromStudent(DrawnAnswers):
    """The student answers: it learns where it goes itself, not where the data goes.

    No gradient runs through the drawing. `behaviour`: its log-probabilities at temperature 1.

    Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, section 3.1; Lin et al. 2020 (ImitKD),
    arXiv 2009.07253.
    """

    knows_behaviour = True
    elsewhere = True

    def draw(self, draws: Sequence[Draw], moment: Moment) -> list[Drawn]:
        return self._engine.draw(moment.student, draws)
