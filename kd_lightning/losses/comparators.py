"""How the scores of the answers to one prompt are compared, pair by pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from kd_lightning.errors import KDError
from kd_lightning.losses.ranks import Ranks

Against = Literal["all", "best"]
"""Which pairs: every better answer against every worse, or the best one against each other."""


class Comparator(ABC):
    """From scores and ranks to a loss: a sum over what `count` counts."""

    grouped = True
    """Whether the batch has to say which answers belong together."""

    def count(self, ranks: Ranks) -> Tensor:
        """What the sum is divided by, `[]`: groups in which an answer is better than another."""
        return ranks.compared

    @abstractmethod
    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        """The sum, `[]`; `scores [B]`."""


class Pairwise(Comparator, ABC):
    r"""A function of the difference between a better answer's score and a worse one's.

    .. math:: \ell\big(s_w - s_l - \gamma - \delta\,(r_w - r_l)\big)
    """

    def __init__(
        self,
        margin: float = 0.0,
        margin_per_reward: float = 0.0,
        against: Against = "all",
        per_group: Literal["mean", "sum"] = "mean",
    ) -> None:
        """Store the settings.

        Args:
            margin: By how much the better score should lead [gamma].
            margin_per_reward: By how much more for each unit of difference in reward [delta].
            against: Which pairs of a group: all, or the best answer against each of the others.
            per_group: Whether a group's pairs are averaged or added up.
        """
        self.margin = margin
        self.margin_per_reward = margin_per_reward
        self.against = against
        self.per_group = per_group

    @abstractmethod
    def link(self, lead: Tensor) -> Tensor:
        """The loss of each difference, elementwise."""

    def leads(self, scores: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Differences less the margins, `[B, B]`, 0 where there is no pair; and where one is."""
        pairs = ranks.better
        if self.against == "best":
            pairs = pairs & ranks.best[:, None]
        lead = scores[:, None] - scores[None, :] - self.margin
        if self.margin_per_reward:
            lead = lead - self.margin_per_reward * ranks.gap.to(lead.dtype)
        return torch.where(pairs, lead, 0.0), pairs

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        lead, pairs = self.leads(scores, ranks)
        weight = pairs.to(scores.dtype)
        if self.per_group == "mean":
            number = ranks.in_group(weight.sum(1))
            weight = weight / number.clamp_min(1)[:, None]
        return (weight * self.link(lead)).sum()


class Logistic(Pairwise):
    r"""The probability that the better answer wins under Bradley-Terry.

    .. math:: -(1 - \epsilon) \log \sigma(u) - \epsilon \log \sigma(-u)

    `unbiased`: :math:`\frac{1}{1 - 2\epsilon}\big(-(1-\epsilon)\log\sigma(u) +
    \epsilon\log\sigma(-u)\big)`, whose mean over labels that are wrong with probability epsilon is
    the loss on right ones. Reward models, DPO, SPIN, SimPO, CPO, ORPO.

    Source: Rafailov et al. 2023 (DPO), arXiv 2305.18290, equation 7; unbiased: Chowdhury, Kini,
    Natarajan 2024 (robust DPO), arXiv 2403.00409.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        unbiased: bool = False,
        margin: float = 0.0,
        margin_per_reward: float = 0.0,
        against: Against = "all",
        per_group: Literal["mean", "sum"] = "mean",
    ) -> None:
        """Store the settings.

        Args:
            label_smoothing: Probability that a preference is wrong, below 0.5 [epsilon].
            unbiased: Take the bias of wrong labels out instead of smoothing.
            margin: By how much the better score should lead [gamma].
            margin_per_reward: By how much more for each unit of difference in reward [delta].
            against: Which pairs of a group: all, or the best answer against each of the others.
            per_group: Whether a group's pairs are averaged or added up.
        """
        super().__init__(margin, margin_per_reward, against, per_group)
        if not 0 <= label_smoothing < 0.5:
            raise KDError(f"label_smoothing must lie from 0 to below 0.5, not {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.unbiased = unbiased

    def link(self, lead: Tensor) -> Tensor:
        wrong = self.label_smoothing
        if self.unbiased:
            return ((1 - wrong) * softplus(-lead) - wrong * softplus(lead)) / (1 - 2 * wrong)
        return (1 - wrong) * softplus(-lead) + wrong * softplus(lead)


class Hinge(Pairwise):
    r"""Nothing to do once the lead is there: :math:`\max(0, -u)`; `margin` is the lead.

    SLiC (margin above 0), RRHF (0, pairs added up).

    Source: Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425; Yuan et al. 2023 (RRHF), arXiv 2304.05302.
    """

    def link(self, lead: Tensor) -> Tensor:
        return (-lead).relu()


class Square(Pairwise):
    r"""Neither less nor more than the lead: :math:`u^2`; `margin` is the lead.

    IPO: the log-ratio, beta 1, margin :math:`1/(2\tau)`.

    Source: Azar et al. 2023 (IPO), arXiv 2310.12036, equation 17.
    """

    def link(self, lead: Tensor) -> Tensor:
        return lead.square()


class HingeOfMean(Pairwise):
    r"""One hinge for the best answer's mean lead over the others of its group.

    .. math:: \max\Big(0, \frac{1}{K-1} \sum_i \big(s_i - s_b + \gamma + \delta\,(r_b - r_i)\big)
        \Big)

    Stable Alignment: average log-probability, delta = M/R. i runs over the worse answers.

    Source: Liu et al. 2023 (Stable Alignment), arXiv 2305.16960.
    """

    def __init__(self, margin: float = 0.0, margin_per_reward: float = 0.0) -> None:
        """Store the settings.

        Args:
            margin: By how much the best score should lead [gamma].
            margin_per_reward: By how much more for each unit of difference in reward [delta].
        """
        super().__init__(margin, margin_per_reward, against="best")

    def link(self, lead: Tensor) -> Tensor:
        return (-lead).relu()

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        lead, pairs = self.leads(scores, ranks)
        return self.link(lead.sum(1) / pairs.sum(1).clamp_min(1)).sum()
