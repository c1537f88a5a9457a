"""Forward KL taken apart: how likely the label is, and how the rest is shared among the others."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl


class DecoupledKD(Divergence):
    r"""Weigh the teacher's opinion on the label apart from its opinion on all other tokens.

    .. math:: \alpha\,\mathrm{KL}\big((p_y, 1 - p_y) \,\|\, (q_y, 1 - q_y)\big)
        + \beta\,\mathrm{KL}(\hat p \,\|\, \hat q), \qquad
        \hat p_v = \frac{p_v}{1 - p_y}, \; \hat q_v = \frac{q_v}{1 - q_y}, \; v \neq y

    p is the teacher, q the student, y the token of the text (whoever wrote it). Forward KL is
    alpha = 1 with beta = 1 - p_y: a constant beta no longer fades where the teacher is confident.

    Source: Zhao et al. 2022 (DKD), arXiv 2203.08679, equation 7; defaults as for CIFAR-100.
    """

    name = "dkd"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 1.0,
        square_temperature: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            alpha: Weight of the label's part (TCKD) [alpha].
            beta: Weight of the other tokens' part (NCKD) [beta].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if alpha < 0 or beta < 0:
            raise KDError(f"alpha and beta must be at least 0, not {alpha} and {beta}")
        self.alpha, self.beta = alpha, beta

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        raise AssertionError("DecoupledKD reads the label: call compare")

    def compare(self, log_s: Tensor, log_t: Tensor, targets: Tensor) -> Tensor:
        label = targets[:, None]
        others_s = log_s.scatter(-1, label, -float("inf")).logsumexp(-1, keepdim=True)
        others_t = log_t.scatter(-1, label, -float("inf")).logsumexp(-1, keepdim=True)
        binary_s = log_s.gather(-1, label), others_s
        binary_t = log_t.gather(-1, label), others_t
        on_label = sum(
            (kl(t, s) for s, t in zip(binary_s, binary_t, strict=True)), log_s.new_zeros(())
        )
        share = (log_t - others_t).scatter(-1, label, -float("inf")).exp()  # [N, V], 0 on the label
        on_others = (share * ((log_t - others_t) - (log_s - others_s))).sum(-1)
        return self.alpha * on_label + self.beta * on_others
