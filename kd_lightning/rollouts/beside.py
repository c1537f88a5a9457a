"""Several answers to one prompt, each from somewhere else."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.errors import KDError
from kd_lightning.rollouts.answers import Answer, Asked
from kd_lightning.rollouts.base import Moment, Rollout


class Beside(Rollout):
    """The answers of all its parts to every prompt, as one group.

    The teacher's answer and the student's own to the same prompt, for losses that treat them
    differently (DistiLLM-2) or compare them.

    Source: Ko et al. 2025 (DistiLLM-2), arXiv 2503.07067, section 3.
    """

    def __init__(self, rollouts: list[Rollout]) -> None:
        """Store the settings.

        Args:
            rollouts: Where the answers come from, in this order.
        """
        if not rollouts:
            raise KDError("rollouts is empty: name at least one, such as FromData and FromStudent")
        self.rollouts = rollouts
        self.knows_behaviour = all(part.knows_behaviour for part in rollouts)

    @property
    def parts(self) -> tuple[Rollout, ...]:
        return tuple(self.rollouts)

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        each = [part.answers(rows, moment) for part in self.rollouts]
        return [[answer for part in each for answer in part[i]] for i in range(len(rows))]
