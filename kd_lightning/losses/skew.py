"""KL divergences whose second argument is skewed towards the first: smaller, steadier gradients."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl


class Skewed(Divergence, ABC):
    """What the two skewed divergences share: the strength of the skew."""

    def __init__(
        self, skew: float = 0.1, temperature: float = 1.0, square_temperature: bool = False
    ) -> None:
        """`skew` [alpha]: share of the first distribution in the second, 0 (none) to below 1."""
        super().__init__(temperature, square_temperature)
        if not 0 <= skew < 1:
            raise KDError(
                f"skew must be at least 0 and below 1, not {skew}: it is the small share (such as "
                "0.1) of the first distribution that is mixed into the second"
            )
        self.skew = skew

    def skewed_kl(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """KL(a || skew * a + (1 - skew) * b), `[N]`."""
        log_m = log_b
        if self.skew > 0:
            log_m = torch.logaddexp(log_a + math.log(self.skew), log_b + math.log1p(-self.skew))
        return kl(log_a, log_m)


class SkewForwardKL(Skewed):
    r"""Forward KL with a little of the teacher mixed into the student; at most -log(alpha).

    .. math:: \mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q)

    p is the teacher, q the student; alpha is the *teacher's* share, so alpha = 0 is `ForwardKL`.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1.
    """

    name = "skew_kl"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return self.skewed_kl(log_t, log_s)


class SkewReverseKL(Skewed):
    r"""Reverse KL with a little of the student mixed into the teacher; at most -log(alpha).

    .. math:: \mathrm{KL}(q \,\|\, (1 - \alpha) p + \alpha q)

    p is the teacher, q the student; alpha is the *student's* share, so alpha = 0 is `ReverseKL`.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1.
    """

    name = "skew_reverse_kl"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return self.skewed_kl(log_s, log_t)
