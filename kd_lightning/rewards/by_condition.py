"""A number for the condition that an answer was drawn under."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Asked, Reward
from kd_lightning.types import CONDITION, Batch


class ByCondition(Reward):
    """How the answer was asked for says how good it is: no judge is asked.

    With two conditions, an answer each, and a ranking: pairs by contrast (RLCD). With a class's
    token each and a loss by reward: C-RLFT.

    Source: Yang et al. 2023 (RLCD), arXiv 2307.12950; Wang et al. 2023 (OpenChat), arXiv
    2309.11235.
    """

    def __init__(self, values: dict[str, float]) -> None:
        """Store the settings.

        Args:
            values: Each condition of the rollout to its number; an answer under another has none.
        """
        super().__init__()
        if not values:
            raise KDError("values must name a number for each condition of the rollout")
        self.values = values

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        return [self._value(each) for each in asked]

    def _value(self, asked: Asked) -> float:
        told = str(asked.example.meta.get(CONDITION, ""))
        if told not in self.values:
            self.count("no condition" if not told else "unknown condition")
            return math.nan
        return self.values[told]
