"""What is differentiated for a policy gradient, and how words of an older policy are weighed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError


class Surrogate(ABC):
    """From log-probabilities and advantages to a loss for each word."""

    @abstractmethod
    def __call__(self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor) -> Tensor:
        """The loss of each word, `[B, T]`.

        Args:
            logp: Of the student, with a graph, `[B, T]`.
            old: Of the policy that drew the words, `[B, T]`.
            advantages: `[B, T]`.
            where: The answers' words, `[B, T]` bool; the rest is not read.
        """

    def clipped(
        self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor
    ) -> Tensor | None:
        """Words that no gradient comes from, `[B, T]` bool; None: it never takes one away."""
        return None


def log_ratio(logp: Tensor, old: Tensor, where: Tensor) -> Tensor:
    """log(student / old policy) of each word, `[B, T]`; 0 outside the answers."""
    return torch.where(where, logp - old, 0.0)


class ScoreFunction(Surrogate):
    r"""Plain policy gradient: :math:`-A \log q(y_t)`; words are taken as the student's own.

    Source: Williams 1992, Simple statistical gradient-following algorithms (REINFORCE).
    """

    def __call__(self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor) -> Tensor:
        return -advantages * logp


class ClippedRatio(Surrogate):
    r"""Proximal policy optimisation: no gain from going further away than the clip.

    .. math:: -\min\big(\rho A,\; \mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A
        \big), \qquad \rho = q / q_{old}

    Different bounds: DAPO's decoupled clip. Words without a known policy count as the student's
    own (:math:`\rho = 1` with a gradient).

    Source: Schulman et al. 2017 (PPO), arXiv 1707.06347, equation 7; decoupled: Yu et al. 2025
    (DAPO), arXiv 2503.14476; `mean`: Zheng et al. 2025 (GSPO), arXiv 2507.18071.
    """

    def __init__(
        self,
        low: float = 0.2,
        high: float = 0.2,
        level: Literal["token", "mean", "product"] = "token",
    ) -> None:
        """Store the settings.

        Args:
            low: How far the ratio may fall, 0 to 1 [epsilon_low].
            high: How far it may rise [epsilon_high].
            level: What the ratio is of: token, each word; mean, the answer, per word (geometric
                mean); product, the whole answer.
        """
        if not 0 <= low <= 1 or high < 0:
            raise KDError(f"low lies within 0 to 1 and high is at least 0, not {low} and {high}")
        self.low = low
        self.high = high
        self.level = level

    def __call__(self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor) -> Tensor:
        ratio = self._ratio(logp, old, where)
        clipped = ratio.clamp(1 - self.low, 1 + self.high)
        return -torch.minimum(ratio * advantages, clipped * advantages)

    def clipped(self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor) -> Tensor:
        ratio = self._ratio(logp, old, where)
        above = (ratio > 1 + self.high) & (advantages > 0)
        below = (ratio < 1 - self.low) & (advantages < 0)
        return (above | below) & where

    def _ratio(self, logp: Tensor, old: Tensor, where: Tensor) -> Tensor:
        """`[B, T]`, or `[B, 1]` for ratios of whole answers."""
        log = log_ratio(logp, old, where)
        if self.level != "token":
            log = log.sum(1, keepdim=True)
            if self.level == "mean":
                log = log / where.sum(1, keepdim=True).clamp_min(1)
        return log.exp()


class ImportanceWeighted(Surrogate):
    r"""Words of another policy, weighed by how likely the student is to say them.

    .. math:: -\mathrm{sg}\big(\min(w, c)\big)\, A \log q(y_t), \qquad w = q / q_{old}

    For text from a mixture with the teacher (MiniLLM), a replay buffer or an engine that computes a
    little differently. `token` has low variance and is biased; `prefix` is right for rewards of the
    word itself, `answer` for rewards of the whole answer.

    Source: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 2.2 (token: its approximation);
    cap: Espeholt et al. 2018 (V-trace), arXiv 1802.01561.
    """

    def __init__(
        self,
        cap: float | None = None,
        level: Literal["token", "prefix", "answer"] = "token",
    ) -> None:
        """Store the settings.

        Args:
            cap: Largest weight [c]; null: none.
            level: token, the word's own ratio; prefix, times those of all words before; answer,
                the product over the whole answer.
        """
        if cap is not None and cap <= 0:
            raise KDError(f"cap must be above 0 or null, not {cap}")
        self.cap = cap
        self.level = level

    def __call__(self, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor) -> Tensor:
        log = log_ratio(logp.detach(), old, where)
        if self.level == "prefix":
            log = log.cumsum(1)
        elif self.level == "answer":
            log = log.sum(1, keepdim=True)
        weight = log.exp()
        weight = weight if self.cap is None else weight.clamp_max(self.cap)
        return -weight * advantages * logp
