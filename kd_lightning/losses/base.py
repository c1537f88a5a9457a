"""What a loss is: sums over counted tokens, with the count known before any forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Formula
from kd_lightning.losses.chunks import Watch, show
from kd_lightning.losses.distributions import Tokens
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import IGNORE, Batch, LossOutput, ModelOutput, Progress, Signal


class Loss(nn.Module, ABC):
    """What a step minimises.

    `forward` returns *sums* per term, `count` what each sum is to be divided by. The Distiller
    divides by the count over all ranks and micro-batches, so how a step is split cannot change it.
    """

    needs: frozenset[Signal] = frozenset()
    """Signals of the teacher without which the loss cannot be computed."""

    @property
    def temperatures(self) -> frozenset[float]:
        """Temperatures at which the teacher's distribution is read; a cache must hold them."""
        return frozenset()

    @property
    def linear_in_teacher(self) -> bool:
        """Whether unbiased estimates of the teacher's probabilities give unbiased gradients."""
        return not self.needs

    @property
    def remembers(self) -> bool:
        """Whether `remember` has something to say."""
        return False

    def remember(self, student: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        """What must not move while a batch of answers serves several steps.

        Of the student that drew them: names of the batch's fields to values `[B, T]`.
        """
        return {}

    def measured(self) -> dict[str, Tensor]:
        """What was seen in the step on this rank, for the log: name to a sum and its count, `[2]`.

        The same names on all ranks.
        """
        return {}

    def begin_step(self, progress: Progress) -> None:
        """Called before each optimizer step, on all ranks alike: schedules move here."""

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        """Called after each optimizer step with the global value of each term: adaptive losses."""

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Term name to what it counts in this batch, `[]` float; no model is needed for it."""

    @abstractmethod
    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        """Term name to its sum over the batch, `[]`, with the same names as `count`."""

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
        watch: Watch | None = None,
    ) -> tuple[Tensor, LossOutput]:
        """What a step differentiates, `[]`: each term over its count, added up; and the terms.

        Only the first has to have a graph. It is one number, so a loss that knows what its terms
        are divided by can make the gradient together with the value. `watch` is shown the tokens
        that have a target: in a pass of its own, unless a loss projects them anyway.
        """
        output = self(student, teacher, batch)
        parts = [value / counts[name].clamp_min(1e-9) for name, value in output.terms.items()]
        if watch is not None:
            show(watch, student, teacher, batch)
        return torch.stack(parts).sum(), output


def _derivative(values: Tensor, by: Tensor) -> Tensor:
    """Of each row's value by the row, `[N, V]`; 0 where the value does not depend on it."""
    if not values.requires_grad:
        return torch.zeros_like(by)
    (found,) = torch.autograd.grad(values.sum(), by, allow_unused=True, materialize_grads=True)
    return found


def _forget(cls: type, derived: str, stated: set[str], base: type) -> None:
    """Give a class that states one of the values, but not their derivative, the general one."""
    if stated & vars(cls).keys() and derived not in vars(cls):
        setattr(cls, derived, vars(base)[derived])


class TokenLoss(Loss, ABC):
    r"""A loss that is a weighted sum over tokens of something computed from their distributions.

    .. math:: \ell = \sum_n w_n \, \ell_n \Big/ \sum_n w_n
    """

    name = "loss"
    """Under which name the term is logged when it stands alone."""

    def counted(self, batch: Batch) -> Tensor:
        """Weight of every position in this loss, `[B, T]`; 0 where it is not counted."""
        return batch.weights * (batch.targets != IGNORE)

    def __init_subclass__(cls, **more: Any) -> None:
        """A class that states another value does not inherit the slope of the former one."""
        super().__init_subclass__(**more)
        _forget(cls, "with_slope", {"per_row"}, TokenLoss)
        _forget(cls, "formula", {"per_row", "with_slope"}, TokenLoss)

    def formula(self) -> Formula | None:
        """The loss as a formula that kernels know, or None: its own methods are called."""
        return None

    @property
    def states_slope(self) -> bool:
        """Whether it writes its derivative: a compiler does not differentiate."""
        return type(self).with_slope is not TokenLoss.with_slope

    @abstractmethod
    def per_row(self, tokens: Tokens) -> Tensor:
        """The loss of each token of the chunk, `[N]`."""

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """`per_row`, and its derivative by the student's logits `[N, V]` in a new tensor.

        Differentiates `per_row`; a loss may state its derivative, which is faster. Ids at the end
        that the derivative leaves out have none.
        """
        with torch.enable_grad():
            tokens = tokens.with_leaf()
            value = self.per_row(tokens)
            slope = _derivative(value, tokens.student)
        return value.detach(), slope

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return {self.name: self.counted(batch).sum()}

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        return LossOutput(token_sums({self.name: self}, student, teacher, batch))

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
        watch: Watch | None = None,
    ) -> tuple[Tensor, LossOutput]:
        sums = TokenSum({self.name: self}, student, teacher, batch, watch=watch)
        total, terms = sums.total({self.name: 1.0}, counts)
        return total, LossOutput(terms)


class Divergence(TokenLoss, ABC):
    """A distance between next-token distributions: a new one writes `per_token` and nothing else.

    Both distributions are taken over the ids that both models know (padding rows are cut off and
    the rest renormalised) at the loss's own `temperature`.
    """

    needs = frozenset({Signal.LOGITS})
    name = "divergence"

    def __init__(self, temperature: float = 1.0, square_temperature: bool = False) -> None:
        """Store the settings.

        Args:
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__()
        if temperature <= 0:
            raise KDError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.square_temperature = square_temperature

    @property
    def temperatures(self) -> frozenset[float]:
        return frozenset([self.temperature])

    def __init_subclass__(cls, **more: Any) -> None:
        """The same for the derivative of `per_token`, and for the formula."""
        super().__init_subclass__(**more)
        _forget(cls, "compare_with_slope", {"per_token", "compare"}, Divergence)
        _forget(cls, "closed_form", {"per_token", "compare", "compare_with_slope"}, Divergence)

    def closed_form(self) -> Formula | None:
        """The divergence at temperature 1 as a formula that kernels know, or None."""
        return None

    def formula(self) -> Formula | None:
        formula, temperature = self.closed_form(), self.temperature
        factor = temperature**2 if self.square_temperature else 1.0
        return formula and replace(formula, temperature=temperature, factor=factor)

    @property
    def states_slope(self) -> bool:
        stated = type(self).compare_with_slope is not Divergence.compare_with_slope
        return stated and super().states_slope

    @property
    def reads_label(self) -> bool:
        """Whether it asks which token is the label: then it writes `compare`."""
        return type(self).compare is not Divergence.compare

    @abstractmethod
    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        """`[N, V]` student and `[N, V]` teacher log-probabilities to `[N]`.

        Of a teacher that is known on a few ids: these and the rest in place of the V ids.
        """

    def compare(self, log_s: Tensor, log_t: Tensor, targets: Tensor) -> Tensor:
        """`per_token`, for a divergence that also reads the label `[N]`."""
        return self.per_token(log_s, log_t)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""`compare`, and its derivative by `log_s` `[N, V]` in a new tensor.

        .. math:: r_v = \frac{\partial D}{\partial \log q_v}

        as if the log-probabilities were free: that they belong to a distribution is seen to by
        `with_slope`, so any constant multiple of q may be added. Differentiates `compare`; a
        divergence may state its derivative, which is faster.
        """
        with torch.enable_grad():
            log_s = log_s.detach().requires_grad_()
            value = self.compare(log_s, log_t, targets)
            slope = _derivative(value, log_s)
        return value.detach(), slope

    def per_row(self, tokens: Tokens) -> Tensor:
        temperature = self.temperature
        value = self.compare(*tokens.compared(temperature, self.reads_label))
        value = tokens.settled(value, temperature)
        return value * temperature**2 if self.square_temperature else value

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        r"""In closed form, from the derivative r by the log-probabilities.

        .. math:: \frac{\partial D}{\partial z_v} = \frac{1}{T} \Big(r_v - q_v \sum_u r_u\Big)
        """
        temperature, label = self.temperature, self.reads_label
        derive = self.compare_with_slope
        if not tokens.complete:  # a stated derivative may leave a multiple of q out
            derive = partial(Divergence.compare_with_slope, self)
        value, slope = derive(*tokens.compared(temperature, label))
        value = tokens.settled(value, temperature)
        slope = tokens.by_logits(slope, temperature, label)
        if self.square_temperature:
            return value * temperature**2, slope.mul_(temperature)
        return value, slope if temperature == 1.0 else slope.div_(temperature)


def token_sums(
    losses: Mapping[str, TokenLoss],
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Batch,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Every loss's weighted sum, over one projection of the hidden states."""
    return TokenSum(losses, student, teacher, batch, chunk).terms()


def stated(loss: Loss) -> dict[str, tuple[Formula | None, bool]]:
    """Each loss on tokens within a loss: its formula, and whether it writes its derivative."""
    on_tokens = [part for part in loss.modules() if isinstance(part, TokenLoss)]
    return {type(part).__name__: (part.formula(), part.states_slope) for part in on_tokens}
