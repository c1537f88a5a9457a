"""How the scores of the answers to one prompt are compared, all at once or one by one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Against, Comparator
from kd_lightning.losses.ranks import Ranks


class ListwiseSoftmax(Comparator):
    r"""Each answer is to win against all worse ones: Plackett-Luce.

    .. math:: -\sum_k \log \frac{e^{s_k T_{kk}}}
        {e^{s_k T_{kk}} + \sum_{i \prec k} e^{s_i T_{ki}}}

    T = 1, or (`by_gap`, PRO) :math:`T_{ki} = r_k - r_i` and :math:`T_{kk} = \max_i T_{ki}`,
    multiplied as in PRO's code (its paper writes 1/T). Added up over a group's answers, averaged
    over groups. Of two answers with T = 1: `Logistic`. `against` best: k is the best answer only,
    a contrastive loss (InfoNCE).

    Source: Song et al. 2023 (PRO), arXiv 2306.17492.
    """

    def __init__(self, by_gap: bool = False, against: Against = "all") -> None:
        """Store the settings.

        Args:
            by_gap: Weigh scores by differences in reward.
            against: all: every answer against all worse ones; best: only the best answer.
        """
        self.by_gap = by_gap
        self.against = against

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        worse = ranks.better
        if self.against == "best":
            worse = worse & ranks.best[:, None]
        some = worse.any(1)
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        own, others = scores, scores[None, :].expand_as(worse)
        if self.by_gap:
            gap = torch.where(worse, ranks.gap, 0.0).to(scores.dtype)
            own, others = own * gap.amax(1), others * gap
        logits = torch.where(itself, own[:, None], others).masked_fill(
            ~(worse | itself), -torch.inf
        )
        return torch.where(some, logits.logsumexp(1) - own, 0.0).sum()


class SoftLabels(Comparator):
    r"""A judge's probabilities of the answers, rather than which is better.

    .. math:: -\sum_i p_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    p from the rewards: as shares of their sum, or :math:`\mathrm{softmax}(r / \tau)` (ListNet).
    Groups with one judged answer do not count.

    Source: Lee et al. 2023 (RLAIF), arXiv 2309.00267; Cao et al. 2007 (ListNet).
    """

    def __init__(self, temperature: float | None = None) -> None:
        """Store the settings.

        Args:
            temperature: Of the softmax of rewards [tau]; None: rewards are probabilities.
        """
        if temperature is not None and temperature <= 0:
            raise KDError(f"temperature must be above 0 or null, not {temperature}")
        self.temperature = temperature

    def _several(self, ranks: Ranks) -> Tensor:
        """Judged answers that have company, `[B]` bool."""
        return ranks.judged & (ranks.in_group(ranks.judged.float()) > 1)

    def count(self, ranks: Ranks) -> Tensor:
        return (self._several(ranks) & ranks.best).sum().float()

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        several = self._several(ranks)
        others = ~(ranks.together & several[None, :])
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        others = others & ~(itself & ~several[:, None])  # a row without company: a sum over itself

        def log_share(values: Tensor) -> Tensor:
            return values - values[None, :].masked_fill(others, -torch.inf).logsumexp(1)

        reward = ranks.reward.to(scores.dtype)
        if self.temperature is None:
            total = ranks.in_group(torch.where(several, reward, 0.0))
            share = reward / torch.where(total > 0, total, 1.0)
        else:
            share = log_share(reward / self.temperature).exp()
        return torch.where(several, -share * log_share(scores), 0.0).sum()


class PointwiseSigmoid(Comparator):
    r"""Good and bad answers without pairs: KTO.

    .. math:: \lambda_D\,(1 - \sigma(s - z_0)) \text{ or } \lambda_U\,(1 - \sigma(z_0 - s)), \qquad
        z_0 = \max(0, \overline{s'})

    An answer is good where its reward is above `threshold`. s' are the scores of the group's rows
    without a reward (nan): answers put to other prompts, which estimate KL(student || reference).
    No gradient through z0; 0 where a group has no such rows. Averaged over judged answers. So a
    group is here the answers that share a reference point, not those to one prompt.

    Source: Ethayarajh et al. 2024 (KTO), arXiv 2402.01306.
    """

    grouped = False

    def __init__(
        self, threshold: float = 0.0, desirable: float = 1.0, undesirable: float = 1.0
    ) -> None:
        """Store the settings.

        Args:
            threshold: Rewards above it are good.
            desirable: Weight of good answers [lambda_D].
            undesirable: Weight of bad ones [lambda_U].
        """
        self.threshold = threshold
        self.desirable = desirable
        self.undesirable = undesirable

    def count(self, ranks: Ranks) -> Tensor:
        return ranks.judged.sum().float()

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        others = ranks.unjudged.to(scores.dtype)
        number = ranks.in_group(others).clamp_min(1)
        point = ranks.in_group(others * scores.detach()) / number
        point = point.clamp_min(0)
        good = ranks.reward > self.threshold
        loss = torch.where(
            good,
            self.desirable * (point - scores).sigmoid(),
            self.undesirable * (scores - point).sigmoid(),
        )
        return torch.where(ranks.judged, loss, 0.0).sum()


class RankedSigmoid(Comparator):
    r"""Raise each answer and lower all worse ones, the more the likelier it already is: KnowPAT.

    .. math:: \frac{1}{K-1} \sum_{i<K} \mu_i \Big[\log(1 + e^{-s_i}) + \frac{1}{K-i} \sum_{j \prec
        i} \log(1 + e^{s_j})\Big], \qquad \mu_i = \frac{s_i - \min s}{\max s - \min s}

    K answers of a group, best first; no gradient through mu.

    Source: Zhang et al. 2023 (KnowPAT), arXiv 2311.06503.
    """

    def __call__(self, scores: Tensor, ranks: Ranks) -> Tensor:
        worse = ranks.better.to(scores.dtype)
        number = ranks.in_group(ranks.judged.to(scores.dtype))
        fixed = scores.detach()
        near = ranks.together & ranks.judged[None, :]
        top = fixed[None, :].masked_fill(~near, -torch.inf).amax(1)
        low = fixed[None, :].masked_fill(~near, torch.inf).amin(1)
        some = ranks.better.any(1)
        spread = torch.where(some & (top > low), top - low, 1.0)
        weight = torch.where(some, (fixed - low) / spread / (number - 1).clamp_min(1), 0.0)
        lowered = (worse @ softplus(scores)) / worse.sum(1).clamp_min(1)
        return (weight * (softplus(-scores) + lowered)).sum()
