"""The words of the data."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.models.causal import CausalLM
from kd_lightning.rollouts.answers import Answer, Asked
from kd_lightning.rollouts.base import Moment, Rollout
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Progress


class FromData(Rollout):
    """The rows as they are: gold answers, or stored ones of a teacher (SeqKD).

    Source: Kim, Rush 2016, arXiv 1606.07947, section 3.2 (stored text of a teacher).
    """

    @property
    def makes_text(self) -> bool:
        return False

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        return [[row.given] for row in rows]

    def __call__(
        self,
        batch: Batch,
        student: CausalLM,
        teacher: Teacher | None,
        progress: Progress,
        seed: int,
    ) -> Batch:
        return batch
