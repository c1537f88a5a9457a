"""Learning from words: supervised fine-tuning and sequence-level distillation."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import Batch, Source


class CrossEntropy(TokenLoss):
    r"""Maximum likelihood of the given words: SFT on gold text, SeqKD on teacher text.

    .. math:: \ell_n = -\log q(y_n \mid x, y_{<n})

    Counts gold and teacher tokens; never the student's own (it would only confirm itself). Always
    at temperature 1, over all of the student's own vocabulary rows.

    Source: Kim, Rush 2016, arXiv 1606.07947, equation 6 (sequence-level distillation).
    """

    name = "ce"

    def counted(self, batch: Batch) -> Tensor:
        return super().counted(batch) * (batch.source != Source.STUDENT)[:, None]

    def formula(self) -> Formula | None:
        return Formula(Family.LABEL)

    def per_row(self, tokens: Tokens) -> Tensor:
        return tokens.nll()

    def with_slope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        z, label = tokens.student, tokens.targets[:, None]
        log_sum = z.logsumexp(-1, keepdim=True)
        slope = (z - log_sum).exp_().scatter_add_(-1, label, z.new_full(label.shape, -1.0))
        return (log_sum - z.gather(-1, label)).squeeze(-1), slope
