"""How much likelier the answer is to the teacher than to whoever drew it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import reference_logprobs, spoken
from kd_lightning.rewards.base import Around, Asked, Reward
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Signal

LOGITS = frozenset({Signal.LOGITS})


class Ratio(Reward):
    r"""The log-ratio of teacher and student: an estimate of minus their reverse KL.

    .. math:: r = \log p(y|x) - \log q(y|x)

    over the answer's words, its end included, or (`average`) divided by their number. The student's
    side is the rollout's log-probabilities, so that it is a constant.

    Source: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, equation 2.
    """

    def __init__(self, teacher: Teacher | None = None, average: bool = False) -> None:
        """Store the settings.

        Args:
            teacher: Whose likelihood; None: the run's teacher.
            average: Divide by the number of words.
        """
        super().__init__()
        self.teacher = teacher
        self.average = average

    def check(self, around: Around) -> None:
        super().check(around)
        teacher = self._teacher
        if Signal.LOGITS not in teacher.offers:
            raise KDError(
                f"Ratio needs the teacher's log-probabilities of the student's own tokens, which "
                f"{type(teacher).__name__} does not give: write a LocalTeacher"
            )

    def materialize(self, device: torch.device) -> None:
        if self.teacher is not None:
            self.teacher.materialize(device)

    @property
    def _teacher(self) -> Teacher:
        found = self.teacher or self._around.teacher
        if found is None:
            raise KDError("Ratio needs a teacher: write model.teacher, or Ratio's own")
        return found

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> Tensor:
        if batch.behaviour is None:
            raise KDError(
                "Ratio needs the log-probabilities that the answers were drawn with: use a rollout "
                "that keeps them (FromStudent)"
            )
        with torch.no_grad():
            knows = reference_logprobs("teacher", self._teacher.forward(batch, LOGITS), batch)
        where = spoken(batch)
        found = torch.where(where, knows - batch.behaviour, 0.0).sum(1)
        if self.average:
            found = found / where.sum(1).clamp_min(1)
        return found[: len(asked)]
