"""The terms of a loss as a function of tensors alone: what a compiler is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kd_lightning.kernels.job import Terms
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import Signal

if TYPE_CHECKING:
    from kd_lightning.losses.base import TokenLoss


@dataclass(frozen=True)
class PureTerms:
    """Losses on tokens of a given vocabulary; equal where the losses are the same objects."""

    losses: tuple[TokenLoss, ...]
    vocab: int
    """Ids that both models know."""
    own: int
    """Ids that the student knows: what a loss that does not ask the teacher sees."""

    def __call__(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, slopes: bool
    ) -> Terms:
        """Values `[n]`, and slopes where they are asked for."""
        both = Tokens(student, teacher, labels, self.vocab)
        alone = both if self.own == self.vocab else Tokens(student, None, labels, self.own)
        seen = [(loss, both if Signal.LOGITS in loss.needs else alone) for loss in self.losses]
        if slopes:
            return [loss.with_slope(tokens) for loss, tokens in seen]
        return [(loss.per_row(tokens), None) for loss, tokens in seen]
