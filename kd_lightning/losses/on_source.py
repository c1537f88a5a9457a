"""A loss for some of the text only: the teacher's words, or the student's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Formula
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import Batch, Progress, Source


class OnSource(TokenLoss):
    """Another loss on tokens, counted where the text is whose it should be.

    Two of them in a `Weighted` treat given and own words differently, each with its own
    denominator: DistiLLM-2 (skew forward KL on the teacher's answers, skew reverse KL on the
    student's), or cross-entropy and a divergence.

    Source: Ko et al. 2025 (DistiLLM-2), arXiv 2503.07067.
    """

    def __init__(
        self, loss: TokenLoss, sources: list[Literal["gold", "teacher", "student"]]
    ) -> None:
        """Store the settings.

        Args:
            loss: What is computed there.
            sources: Whose words count.
        """
        super().__init__()
        if not sources:
            raise KDError("sources is empty: name at least one of gold, teacher, student")
        self.loss = loss
        self.sources = sources
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
        wanted = torch.zeros_like(batch.source, dtype=torch.bool)
        for name in self.sources:
            wanted = wanted | (batch.source == Source[name.upper()])
        return self.loss.counted(batch) * wanted[:, None]

    def formula(self) -> Formula | None:
        return self.loss.formula()

    def per_row(self, tokens: Tokens) -> Tensor:
        return self.loss.per_row(tokens)

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.loss.with_slope(tokens)
