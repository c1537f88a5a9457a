"""Forward and reverse KL, mixed by where the models differ: in the teacher's head or its tail."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl, kl_and_terms


class AdaptiveKL(Divergence):
    r"""Forward KL where the head of the teacher is missed, reverse KL where its tail is.

    .. math:: \frac{g_h}{g_h + g_t} \mathrm{KL}(p \,\|\, q)
        + \frac{g_t}{g_h + g_t} \mathrm{KL}(q \,\|\, p), \qquad
        g_h = \sum_{v \in \mathrm{head}} |p_v - q_v|, \quad
        g_t = \sum_{v \in \mathrm{tail}} |p_v - q_v|

    p is the teacher, q the student. Head: the teacher's likeliest tokens, in descending order, as
    long as their mass together is at most mu; the first always. The weights carry no gradient;
    where the models agree entirely, both are 1/2.

    Source: Wu et al. 2024, arXiv 2404.02657, section 4 (AKL).
    """

    name = "akl"

    def __init__(
        self, head_mass: float = 0.5, temperature: float = 1.0, square_temperature: bool = False
    ) -> None:
        """Store the settings.

        Args:
            head_mass: How much of the teacher's probability makes its head, 0 to 1 [mu].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 < head_mass < 1:
            raise KDError(f"head_mass must lie strictly between 0 and 1, not {head_mass}")
        self.head_mass = head_mass

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        head = self.head_weight(log_s, log_t)
        return head * kl(log_t, log_s) + (1 - head) * kl(log_s, log_t)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        head = self.head_weight(log_s, log_t)
        forward, p, _ = kl_and_terms(log_t, log_s)
        backward, _, terms = kl_and_terms(log_s, log_t)
        value = head * forward + (1 - head) * backward
        head = head[:, None]
        return value, terms.mul_(1 - head).sub_(p.mul_(head))

    @torch.no_grad()
    def head_weight(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        """The weight of forward KL, `[N]`; reverse KL has the rest."""
        teacher, order = log_t.exp().sort(dim=-1, descending=True, stable=True)
        in_head = teacher.cumsum(-1) <= self.head_mass
        in_head[:, 0] = True
        gap = (teacher - log_s.exp().gather(-1, order)).abs()
        everywhere = gap.sum(-1)
        head = (gap * in_head).sum(-1) / everywhere.clamp_min(torch.finfo(gap.dtype).tiny)
        return torch.where(everywhere > 0, head, 0.5)
