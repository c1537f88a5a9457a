"""Maximum likelihood of answers, the more the better they are."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.types import IGNORE, Batch


class RewardWeighted(CrossEntropy):
    r"""Cross-entropy on judged answers, each weighed by its reward.

    .. math:: \ell = -\frac{\sum_i w_i \log q(y_i)}{\sum_i w_i |y_i|}, \qquad
        w_i = e^{r_i/\beta} \text{ or } [r_i \ge \tau]

    C-RLFT (a condition in the prompt, a weight per class), advantage-weighted regression,
    reward-filtered tuning (RFT, ReST, RAFT). Unlike `CrossEntropy` it counts the student's own
    words too: a reward speaks for them. Answers without a reward (nan) do not count.

    Source: Wang et al. 2023 (C-RLFT), arXiv 2309.11235; Gulcehre et al. 2023 (ReST), arXiv
    2308.08998.
    """

    name = "weighted_ce"

    def __init__(self, beta: float | None = 1.0, threshold: float | None = None) -> None:
        """Store the settings.

        Args:
            beta: How flat the weights are; null: all alike.
            threshold: Answers with a smaller reward do not count [tau]; null: all do.
        """
        super().__init__()
        if beta is not None and beta <= 0:
            raise KDError(f"beta must be above 0 or null, not {beta}")
        self.beta = beta
        self.threshold = threshold

    def counted(self, batch: Batch) -> Tensor:
        words = batch.weights * (batch.targets != IGNORE)
        if batch.reward is None:
            if self.training:
                raise KDError(
                    "RewardWeighted needs a reward for each row of the batch: give it judged "
                    "answers, or use CrossEntropy"
                )
            return torch.zeros_like(words)
        taken = ~batch.reward.isnan()
        reward = batch.reward.nan_to_num(0.0)
        if self.threshold is not None:
            taken = taken & (reward >= self.threshold)
        weight = torch.ones_like(reward) if self.beta is None else (reward / self.beta).exp()
        return words * torch.where(taken, weight, 0.0).to(words.dtype)[:, None]
