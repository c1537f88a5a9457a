"""Teachers that must lose."""

from __future__ import annotations

from dataclasses import replace

from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch, ModelOutput, Signal


class ShuffledTeacher(LocalTeacher):
    """Says of each row in training what it thinks of the next row: the same teacher, misplaced.

    Batches of one row (and a validation that asks it row by row) are left as they are.
    """

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        """The teacher's states, rolled over the rows."""
        output = super().forward(batch, needs)
        return replace(output, hidden=output.hidden.roll(1, 0).clone())
