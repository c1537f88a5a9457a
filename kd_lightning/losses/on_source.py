"""A loss for some of the text only: the teacher's words, or the student's own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.some_rows import SomeRows
from kd_lightning.types import Batch, Source


class OnSource(SomeRows):
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
        super().__init__(loss)
        if not sources:
            raise KDError("sources is empty: name at least one of gold, teacher, student")
        self.sources = sources

    def rows(self, batch: Batch) -> Tensor:
        wanted = torch.zeros_like(batch.source, dtype=torch.bool)
        for name in self.sources:
            wanted = wanted | (batch.source == Source[name.upper()])
        return wanted
