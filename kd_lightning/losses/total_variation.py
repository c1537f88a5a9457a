"""Half the absolute difference of the probabilities."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence


class TotalVariation(Divergence):
    r"""How often a draw from the teacher must be rejected as one from the student.

    .. math:: \mathrm{TV}(p, q) = \tfrac{1}{2} \sum_v |p_v - q_v| \in [0, 1]

    p is the teacher, q the student; symmetric. 1 - TV is the acceptance rate of speculative
    decoding. The gradient at q = p is taken as 0.

    Source: Wen et al. 2023 (f-DISTILL), arXiv 2307.15190, section 3.
    """

    name = "tv"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return 0.5 * (log_t.exp() - log_s.exp()).abs().sum(-1)

    def closed_form(self) -> Formula | None:
        return Formula(Family.DISTANCE)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        q = log_s.exp()
        gap = q - log_t.exp()
        return 0.5 * gap.abs().sum(-1), gap.sign_().mul_(q).mul_(0.5)
