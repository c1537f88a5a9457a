"""The teacher's words, drawn while the student learns."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.drawn import DrawnAnswers
from kd_lightning.rollouts.engines import no_voice, speaks, voice
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Source


class FromTeacher(DrawnAnswers):
    """The teacher answers, anew in each step: sequence-level distillation without stored text.

    Source: Kim, Rush 2016, arXiv 1606.07947, section 3.2.
    """

    needs_teacher = True
    source = Source.TEACHER

    def check(self, teacher: Teacher | None) -> None:
        super().check(teacher)
        if teacher is not None and not speaks(teacher):
            raise no_voice(teacher, type(self).__name__)

    def draw(self, draws: Sequence[Draw], moment: Moment) -> list[Drawn]:
        assert moment.teacher is not None
        with voice(moment.teacher, type(self).__name__) as model:
            return self._engine.draw(model, draws)
