"""The one-parameter family that joins reverse KL, Hellinger and forward KL."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl, kl_and_terms

CLOSEST = 1e-3
"""Nearer to a limit than this, float32 rounding (about 1e-7 over the distance) takes over."""


class AlphaDivergence(Divergence):
    r"""From reverse KL (alpha = 0) over Hellinger (1/2) to forward KL (alpha = 1).

    .. math:: D_\alpha = \frac{\sum_v p_v^\alpha q_v^{1 - \alpha} - 1}{\alpha (\alpha - 1)}

    p is the teacher, q the student. alpha = 0 and 1 are the limits, KL(q || p) and KL(p || q).
    Outside of 0 to 1 the sum has no bound where one model finds a token impossible: refused.

    Source: Amari 1985, Differential-geometrical methods in statistics; as a distillation loss:
    Wang, Li, Chandra 2021 (AlphaNet), arXiv 2102.07954, equation 5.
    """

    name = "alpha"

    def __init__(
        self, alpha: float = 0.5, temperature: float = 1.0, square_temperature: bool = False
    ) -> None:
        """Store the settings.

        Args:
            alpha: 0 (reverse KL) to 1 (forward KL) [alpha].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 <= alpha <= 1:
            raise KDError(f"alpha must lie between 0 and 1, not {alpha}: outside it overflows")
        if 0 < min(alpha, 1 - alpha) < CLOSEST:
            raise KDError(f"alpha {alpha} is lost in rounding: write {round(alpha)} for the limit")
        self.alpha = alpha

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        alpha = self.alpha
        if alpha == 0:
            return kl(log_s, log_t)
        if alpha == 1:
            return kl(log_t, log_s)
        log_sum = torch.logsumexp(alpha * log_t + (1 - alpha) * log_s, dim=-1)
        return log_sum.expm1() / (alpha * (alpha - 1))

    def closed_form(self) -> Formula | None:
        if self.alpha in (0, 1):
            return Formula(Family.DIRECTIONS, self.alpha, 1 - self.alpha)
        return Formula(Family.POWERS, self.alpha, 1 - self.alpha, 1.0)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha = self.alpha
        if alpha == 0:
            value, _, terms = kl_and_terms(log_s, log_t)
            return value, terms
        if alpha == 1:
            value, p, _ = kl_and_terms(log_t, log_s)
            return value, p.neg_()
        between = alpha * log_t + (1 - alpha) * log_s
        value = between.logsumexp(-1).expm1() / (alpha * (alpha - 1))
        return value, between.exp_().div_(-alpha)
