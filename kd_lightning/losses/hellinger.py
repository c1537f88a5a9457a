"""The distance of the square roots of the probabilities."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence


class Hellinger(Divergence):
    r"""A bounded, symmetric divergence that is smooth everywhere.

    .. math:: H^2(p, q) = \tfrac{1}{2} \sum_v (\sqrt{p_v} - \sqrt{q_v})^2
        = 1 - \sum_v \sqrt{p_v q_v} \in [0, 1]

    p is the teacher, q the student. The *squared* distance: the distance itself has no gradient at
    q = p. A quarter of `AlphaDivergence` at alpha = 1/2.

    Source: Hellinger 1909; as an f-divergence: Sason, Verdu 2016, arXiv 1508.00335, equation 55.
    """

    name = "hellinger"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return 0.5 * ((0.5 * log_t).exp() - (0.5 * log_s).exp()).square().sum(-1)

    def closed_form(self) -> Formula | None:
        return Formula(Family.POWERS, 0.5, 0.5, 0.25)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        root = (0.5 * log_s).exp_()
        gap = root - (0.5 * log_t).exp_()
        return 0.5 * gap.square().sum(-1), gap.mul_(root).mul_(0.5)
