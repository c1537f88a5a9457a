"""KL divergences whose second argument is skewed towards the first: smaller, steadier gradients."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.distributions import Tokens
from kd_lightning.losses.kl import kl, kl_and_terms


class Skewed(Divergence, ABC):
    """What the two skewed divergences share: the strength of the skew.

    `each`, where somebody sets it, holds a strength of its own for each position of the batch.
    """

    varies = False
    """Whether `each` will be set: then no kernel knows the loss as a formula."""
    each: Tensor | None = None
    """`[B * T]`, strictly between 0 and 1, no gradient."""

    def __init__(
        self, skew: float = 0.1, temperature: float = 1.0, square_temperature: bool = False
    ) -> None:
        """Store the settings.

        Args:
            skew: Share of the first distribution in the second, 0 (none) to below 1 [alpha].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 <= skew < 1:
            raise KDError(
                f"skew must be at least 0 and below 1, not {skew}: it is the small share (such as "
                "0.1) of the first distribution that is mixed into the second"
            )
        self.skew = skew

    def per_row(self, tokens: Tokens) -> Tensor:
        self._look(tokens)
        return super().per_row(tokens)

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        self._look(tokens)
        return super().with_slope(tokens)

    def formula(self) -> Formula | None:
        return None if self.varies else super().formula()

    @property
    def states_slope(self) -> bool:
        return super().states_slope and not self.varies

    def _look(self, tokens: Tokens) -> None:
        """The strengths of the chunk's tokens, `[N, 1]`."""
        self._here: Tensor | None = None
        if self.each is not None:
            assert tokens.places is not None
            self._here = self.each[tokens.places][:, None]

    @property
    def share(self) -> float | Tensor:
        """Of the first distribution in the second: a number, or `[N, 1]`."""
        here: Tensor | None = getattr(self, "_here", None)
        return self.skew if here is None else here

    def skewed_kl(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """KL(a || skew * a + (1 - skew) * b), `[N]`."""
        return kl(log_a, self.skewed(log_a, log_b))

    def skewed(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """log(skew * a + (1 - skew) * b), `[N, V]`."""
        share = self.share
        if isinstance(share, Tensor):
            share = share.to(log_a.dtype)
            return torch.logaddexp(log_a + share.log(), log_b + (-share).log1p())
        if share == 0:
            return log_b
        return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


class SkewForwardKL(Skewed):
    r"""Forward KL with a little of the teacher mixed into the student; at most -log(alpha).

    .. math:: \mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q)

    p is the teacher, q the student; alpha is the *teacher's* share, so alpha = 0 is `ForwardKL`.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1.
    """

    name = "skew_kl"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return self.skewed_kl(log_t, log_s)

    def closed_form(self) -> Formula | None:
        if self.skew == 0:
            return Formula(Family.DIRECTIONS, 1.0, 0.0)
        return Formula(Family.MIXTURE, 1.0, 0.0, self.skew)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_m = self.skewed(log_t, log_s)
        value, p, _ = kl_and_terms(log_t, log_m)
        return value, (log_s - log_m).exp_().mul_(p).mul_(self.share - 1)


class SkewReverseKL(Skewed):
    r"""Reverse KL with a little of the student mixed into the teacher; at most -log(alpha).

    .. math:: \mathrm{KL}(q \,\|\, (1 - \alpha) p + \alpha q)

    p is the teacher, q the student; alpha is the *student's* share, so alpha = 0 is `ReverseKL`.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1.
    """

    name = "skew_reverse_kl"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return self.skewed_kl(log_s, log_t)

    def closed_form(self) -> Formula | None:
        if self.skew == 0:
            return Formula(Family.DIRECTIONS, 0.0, 1.0)
        return Formula(Family.MIXTURE, 0.0, 1.0, 1 - self.skew)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_m = self.skewed(log_s, log_t)
        value, q, terms = kl_and_terms(log_s, log_m)
        if isinstance(self.share, Tensor) or self.share > 0:  # the mixture moves with the student
            terms -= (log_s - log_m).exp_().mul_(q).mul_(self.share)
        return value, terms
