"""A loss for the rows of one skill only: the terms of a run that learns several things."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.some_rows import SomeRows
from kd_lightning.types import Batch


class OnSkill(SomeRows):
    r"""Another loss on tokens, counted in the rows of one skill (one part of a mixture).

    Several of them in a `Weighted` give each skill its own weight and its own denominator, however
    long its answers are: for labels and rationales

    .. math:: \ell = \alpha \, \ell_{label} + (1 - \alpha) \, \ell_{rationale}

    Source: Hsieh et al. 2023 (distilling step-by-step), arXiv 2305.02301, section 3.2.
    """

    def __init__(self, loss: TokenLoss, skill: str) -> None:
        """Store the settings.

        Args:
            loss: What is computed there.
            skill: Whose rows count: the name of a part of `Mixture`, or a data module's own.
        """
        super().__init__(loss)
        if not skill:
            raise KDError("skill is empty: name the part of the mixture whose rows count")
        self.skill = skill

    def rows(self, batch: Batch) -> Tensor:
        of = [example.skill == self.skill for example in batch.examples]
        of += [False] * (len(batch) - len(of))  # rows that only fill the batch stand last
        return torch.tensor(of, device=batch.weights.device)
