"""The two-parameter family of ABKD: how hard errors and how hard confidence are pressed."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.alpha import CLOSEST
from kd_lightning.losses.base import Divergence


class AlphaBetaDivergence(Divergence):
    r"""Choose apart how much weight goes to large errors and to the student's confident tokens.

    .. math:: D_{\alpha,\beta} = -\frac{1}{\alpha\beta} \sum_v \Big( p_v^\alpha q_v^\beta
        - \frac{\alpha}{\alpha+\beta} p_v^{\alpha+\beta}
        - \frac{\beta}{\alpha+\beta} q_v^{\alpha+\beta} \Big)

    p is the teacher, q the student. At 0 the limits hold: beta = 0 gives
    alpha^-2 sum(alpha p^alpha log(p/q) - p^alpha + q^alpha), alpha = 0 the same with p and q (and
    the parameters) exchanged. (1, 0) is `ForwardKL`, (0, 1) `ReverseKL`, alpha + beta = 1 the
    `AlphaDivergence`. Negative parameters have no bound where a token is impossible, and (0, 0)
    weighs each token of the vocabulary alike: both are refused. The authors' code divides its
    limits by the parameter, not by its square: not what its general case goes to, but at 1.

    Source: Wang et al. 2025 (ABKD), arXiv 2505.04560, definition of the alpha-beta divergence;
    limits: Cichocki, Cruces, Amari 2011, Entropy 13(1), 134-170, doi 10.3390/e13010134.
    """

    name = "alpha_beta"

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        temperature: float = 1.0,
        square_temperature: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            alpha: The smaller, the more the large errors count [alpha].
            beta: The larger, the more the tokens that the student finds likely count [beta].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if alpha < 0 or beta < 0 or alpha + beta == 0:
            raise KDError(
                f"alpha and beta must be at least 0 and not both 0, not {alpha} and {beta}: write "
                "1 and 0 for forward KL, 0 and 1 for reverse KL"
            )
        for name, value in (("alpha", alpha), ("beta", beta)):
            if 0 < value < CLOSEST:
                raise KDError(f"{name} {value} is lost in rounding: write 0 for the limit")
        self.alpha, self.beta = alpha, beta

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        if self.beta == 0:
            return _limit(log_t, log_s, self.alpha)
        if self.alpha == 0:
            return _limit(log_s, log_t, self.beta)
        alpha, beta, both = self.alpha, self.beta, self.alpha + self.beta
        teacher = alpha / both * (both * log_t).exp()
        student = beta / both * (both * log_s).exp()
        return (teacher + student - (alpha * log_t + beta * log_s).exp()).sum(-1) / (alpha * beta)

    def closed_form(self) -> Formula | None:
        return Formula(Family.POWERS, self.alpha, self.beta, 1.0)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value = self.per_token(log_s, log_t)
        if self.beta == 0:  # (q^a - p^a) / a
            return value, self._powers(log_s, log_t, self.alpha)
        if self.alpha == 0:  # q^b log(q/p)
            return value, (self.beta * log_s).exp().mul_(log_s - log_t)
        both = self.alpha + self.beta
        between = (self.alpha * log_t + self.beta * log_s).exp_()
        return value, (both * log_s).exp_().sub_(between).div_(self.alpha)

    @staticmethod
    def _powers(log_s: Tensor, log_t: Tensor, power: float) -> Tensor:
        return (power * log_s).exp_().sub_((power * log_t).exp_()).div_(power)


def _limit(log_a: Tensor, log_b: Tensor, power: float) -> Tensor:
    """Sum of power a^power log(a/b) - a^power + b^power, over power^2, `[N]`."""
    log_a, log_b = power * log_a, power * log_b
    a, b = log_a.exp(), log_b.exp()
    return (a * (log_a - log_b) - a + b).sum(-1) / power**2
