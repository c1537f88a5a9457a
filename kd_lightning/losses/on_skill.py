"""A loss for the rows of one skill only: the terms of a run that learns several things."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Formula
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import Batch, Progress


class OnSkill(TokenLoss):
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
        super().__init__()
        if not skill:
            raise KDError("skill is empty: name the part of the mixture whose rows count")
        self.loss = loss
        self.skill = skill
        self.needs = loss.needs
        self.name = loss.name

    @property
    def temperatures(self) -> frozenset[float]:
        return self.loss.temperatures

    @property
    def linear_in_teacher(self) -> bool:
        return self.loss.linear_in_teacher

    @property
    def states_slope(self) -> bool:
        return self.loss.states_slope

    def begin_step(self, progress: Progress) -> None:
        self.loss.begin_step(progress)

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        self.loss.end_step(values)

    def counted(self, batch: Batch) -> Tensor:
        of = [example.skill == self.skill for example in batch.examples]
        of += [False] * (len(batch) - len(of))  # rows that only fill the batch stand last
        weights = self.loss.counted(batch)
        return weights * torch.tensor(of, device=weights.device)[:, None]

    def formula(self) -> Formula | None:
        return self.loss.formula()

    def per_row(self, tokens: Tokens) -> Tensor:
        return self.loss.per_row(tokens)

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.loss.with_slope(tokens)
