"""Another loss on tokens, counted in some of the rows only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from kd_lightning.kernels.formula import Formula
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import Batch, Progress


class SomeRows(TokenLoss):
    """A loss that a subclass applies to the rows that it names in `rows`.

    Several of them in a `Weighted` have each its own weight and its own denominator.
    """

    def __init__(self, loss: TokenLoss) -> None:
        """`loss` is what is computed there."""
        super().__init__()
        self.loss = loss
        self.needs = loss.needs
        self.name = loss.name

    @abstractmethod
    def rows(self, batch: Batch) -> Tensor:
        """Which rows count, `[B]` bool."""

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
        return self.loss.counted(batch) * self.rows(batch)[:, None]

    def formula(self) -> Formula | None:
        return self.loss.formula()

    def per_row(self, tokens: Tokens) -> Tensor:
        return self.loss.per_row(tokens)

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.loss.with_slope(tokens)
