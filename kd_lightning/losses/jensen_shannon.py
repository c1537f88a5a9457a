"""The bounded mixture divergence of generalised knowledge distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl


class JensenShannon(Divergence):
    r"""Between both directions of KL, and bounded however far the models are apart.

    .. math::
        m = \beta p + (1 - \beta) q, \qquad
        \mathrm{JSD}_\beta = \beta\,\mathrm{KL}(p \,\|\, m) + (1 - \beta)\,\mathrm{KL}(q \,\|\, m)

    p is the teacher, q the student: beta weighs the *teacher*, in the mixture and before its KL.
    Towards the ends the value itself vanishes (JSD/beta tends to KL(p || q), JSD/(1 - beta) to
    KL(q || p)), so the ends are refused instead of jumping to another scale.

    Source: Agarwal et al. 2024 (GKD), arXiv 2306.13649, section 2.
    """

    name = "jsd"

    def __init__(
        self, beta: float = 0.5, temperature: float = 1.0, square_temperature: bool = False
    ) -> None:
        """Store the settings.

        Args:
            beta: The teacher's share of the mixture, strictly between 0 and 1 [beta].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 < beta < 1:
            raise KDError(
                f"beta must lie strictly between 0 and 1, not {beta}: use ForwardKL for the end "
                "at 0 and ReverseKL for the end at 1"
            )
        self.beta = beta

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        beta = self.beta
        log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
        return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)

    def closed_form(self) -> Formula | None:
        return Formula(Family.MIXTURE, self.beta, 1 - self.beta, self.beta)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        # the mixture of probabilities instead of their logarithms: half of the time; where both
        # vanish its logarithm is replaced by a finite number, and what it multiplies is 0
        beta = self.beta
        p = log_t.exp()
        log_m = log_s.exp().lerp_(p, beta).clamp_min_(torch.finfo(p.dtype).tiny).log_()
        of_teacher = p.mul_(log_t - log_m).sum(-1)
        del p  # three tiles at once, not four
        terms = (log_s - log_m).mul_(log_s.exp())
        value = beta * of_teacher + (1 - beta) * terms.sum(-1)
        return value, terms.mul_(1 - beta)
