"""How undecided the student is: a bonus where it should go on trying, with a negative weight."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.distributions import Tokens


class Entropy(TokenLoss):
    r"""The entropy of the student's next-token distribution, in nats.

    .. math:: H = -\sum_v q_v \log q_v

    At temperature 1, over all of the student's own rows. Minimising it makes the student decided; a
    negative weight in `Weighted` (or `entropy_weight` of `PolicyGradient`) keeps it exploring.

    Source: Williams, Peng 1991; Pereyra et al. 2017, arXiv 1701.06548 (confidence penalty).
    """

    name = "entropy"

    def per_row(self, tokens: Tokens) -> Tensor:
        log_q = tokens.student.log_softmax(-1)
        return -(log_q.exp() * log_q).sum(-1)

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        log_q = tokens.student.log_softmax(-1)
        q = log_q.exp()
        value = -(q * log_q).sum(-1)
        return value, q.mul_(log_q.add_(value[:, None])).neg_()
