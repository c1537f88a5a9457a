"""What an answer is worth to a model: the score by which answers are compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import wide


@dataclass(frozen=True)
class Said:
    """What a score sees of the answers."""

    logp: Tensor  # [B] student's log p(answer): a sum over its words
    reference: Tensor | None  # [B] the frozen model's
    length: Tensor  # [B] words, at least 1
    state: Tensor  # [B, D] student's state before the last word (the end token)
    text: Tensor | None = None  # [B, D] mean of the student's states over the whole row
    question: Tensor | None = None  # [B] the group's row without a reward; -1: has not just one


class Score(nn.Module, ABC):
    """A number for each answer; `Ranking` multiplies it by beta."""

    reads_words = True
    """Whether it needs the words' log-probabilities."""
    reads_reference = False
    """Whether it needs a frozen model's as well."""
    reads_texts = False
    """Whether rows are texts by themselves, and the group's row without a reward their question."""

    @abstractmethod
    def forward(self, said: Said) -> Tensor:
        """The scores, `[B]`."""


class LogProbability(Score):
    r"""How likely the answer is: :math:`\log q(y|x)`, or divided by its length.

    CPO and SLiC use the sum; SimPO, RRHF, PRO, KnowPAT, Stable Alignment the average.
    """

    def __init__(self, average: bool = False) -> None:
        """Store the settings.

        Args:
            average: Divide by the number of words.
        """
        super().__init__()
        self.average = average

    def forward(self, said: Said) -> Tensor:
        return said.logp / said.length if self.average else said.logp


class LogRatio(Score):
    r"""How much likelier than to a frozen reference: :math:`\log q(y|x) - \log q_0(y|x)`.

    DPO's implicit reward, up to beta: the policy that is best for a reward r under a KL penalty has
    :math:`r = \beta \log (q/q_0) + \beta \log Z(x)`, and Z cancels in a difference. DPO, KTO, SPIN
    and the paper of IPO use the sum; TRL's IPO the average.

    Source: Rafailov et al. 2023 (DPO), arXiv 2305.18290, equation 5.
    """

    reads_reference = True

    def __init__(self, average: bool = False) -> None:
        """Store the settings.

        Args:
            average: Divide by the number of words.
        """
        super().__init__()
        self.average = average

    def forward(self, said: Said) -> Tensor:
        assert said.reference is not None
        ratio = said.logp - said.reference
        return ratio / said.length if self.average else ratio


class LogOdds(Score):
    r"""Odds of the answer's length-averaged likelihood P, as ORPO has it.

    .. math:: \log \frac{P}{1 - P}, \qquad P = q(y|x)^{1/|y|}

    Source: Hong, Lee, Thorne 2024 (ORPO), arXiv 2403.07691.
    """

    def forward(self, said: Said) -> Tensor:
        mean = said.logp / said.length
        mean = mean.clamp_max(-torch.finfo(mean.dtype).eps)
        near, far = mean.clamp_min(-math.log(2)), mean.clamp_max(-math.log(2))
        rest = torch.where(mean > -math.log(2), (-near.expm1()).log(), (-far.exp()).log1p())
        return mean - rest


class ScalarHead(Score):
    """A learned number, which makes the student a reward model.

    A linear map, 0 at first, of the state that has read everything but the answer's last word (the
    end token). In float32, and part of the checkpoint as the loss's own weight.
    """

    reads_words = False

    def __init__(self, width: int) -> None:
        """Store the settings.

        Args:
            width: The student's hidden size.
        """
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, said: Said) -> Tensor:
        state = wide(said.state)
        if state.shape[-1] != self.width:
            size = state.shape[-1]
            raise KDError(f"the student's hidden size is {size}: write width: {size}")
        scores: Tensor = state @ self.weight.to(state.dtype)
        return scores
