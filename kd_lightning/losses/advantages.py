"""How much better a word or an answer was than expected: the weights of a policy gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError


@dataclass(frozen=True)
class Rewards:
    """What was earned, word by word; no gradient."""

    tokens: Tensor  # [B, T] reward of each word; the answer's own stands at its last word
    where: Tensor  # [B, T] bool: words of judged answers
    group: Tensor  # [B] int64
    values: Tensor | None = None  # [B, T] what was expected before each word

    @cached_property
    def total(self) -> Tensor:
        """Each answer's reward, `[B]`."""
        return self.tokens.sum(1)

    @cached_property
    def judged(self) -> Tensor:
        """Answers that take part, `[B]` bool."""
        return self.where.any(1)

    @cached_property
    def peers(self) -> Tensor:
        """1 where two judged answers are of one group, the row itself included, `[B, B]`."""
        same = self.group[:, None] == self.group[None, :]
        return (same & self.judged[None, :] & self.judged[:, None]).to(self.tokens.dtype)

    @cached_property
    def number(self) -> Tensor:
        """Judged answers in each row's group, at least 1, `[B]`."""
        return self.peers.sum(1).clamp_min(1)

    @cached_property
    def centred(self) -> Tensor:
        """Each answer's reward less its group's mean, `[B]`."""
        return self.total - self.peers @ self.total / self.number

    def backwards(self, decay: float, rewards: Tensor) -> Tensor:
        r""":math:`c_t = r_t + \text{decay} \, c_{t+1}` over the words of each row, `[B, T]`.

        Positions between the words (another's turn) are passed over.
        """
        carry, found = rewards.new_zeros(len(rewards)), []
        for t in range(rewards.shape[1] - 1, -1, -1):
            carry = torch.where(self.where[:, t], rewards[:, t] + decay * carry, carry)
            found.append(carry)
        return torch.where(self.where, torch.stack(found[::-1], 1), 0.0)

    def following(self, values: Tensor) -> Tensor:
        """The value at the row's next word, 0 at its last, `[B, T]`."""
        carry, found = values.new_zeros(len(values)), []
        for t in range(values.shape[1] - 1, -1, -1):
            found.append(carry)
            carry = torch.where(self.where[:, t], values[:, t], carry)
        return torch.where(self.where, torch.stack(found[::-1], 1), 0.0)


class Advantage(ABC):
    """From rewards to what each word's log-probability is raised by."""

    grouped = False
    """Whether answers to one prompt are compared with each other."""
    needs_values = False
    """Whether a value head has to say what was expected."""

    @abstractmethod
    def __call__(self, rewards: Rewards) -> Tensor:
        """Advantages, `[B, T]`; outside the answers they are not read."""


class Reinforce(Advantage):
    r"""The answer's reward, less a number: :math:`A = r - b`.

    Source: Williams 1992, Simple statistical gradient-following algorithms (REINFORCE).
    """

    def __init__(self, baseline: float = 0.0) -> None:
        """Store the settings.

        Args:
            baseline: Taken off every reward [b].
        """
        self.baseline = baseline

    def __call__(self, rewards: Rewards) -> Tensor:
        return (rewards.total - self.baseline)[:, None].expand_as(rewards.tokens)


class RLOO(Advantage):
    r"""The reward less the mean of the other answers': unbiased.

    .. math:: A_i = r_i - \frac{1}{G-1} \sum_{j \ne i} r_j = \frac{G}{G-1}(r_i - \bar r)

    An answer alone in its group has nothing to be compared with: 0.

    Source: Ahmadian et al. 2024, arXiv 2402.14740.
    """

    grouped = True

    def __call__(self, rewards: Rewards) -> Tensor:
        more = rewards.number / (rewards.number - 1).clamp_min(1)
        return (more * rewards.centred)[:, None].expand_as(rewards.tokens)


class GRPO(Advantage):
    r"""The reward in standard deviations of its group.

    .. math:: A_i = \frac{r_i - \bar r}{\mathrm{std}(r) + \epsilon}

    with the unbiased variance (G - 1). Questions that nearly all answers get right or wrong count
    more than others; `DrGRPO` does not do that. An answer alone in its group: 0.

    Source: Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300, section 4.1.
    """

    grouped = True

    def __init__(self, epsilon: float = 1e-4) -> None:
        """Store the settings.

        Args:
            epsilon: Added to the standard deviation.
        """
        if epsilon <= 0:
            raise KDError(f"epsilon must be above 0, not {epsilon}: equal rewards have no spread")
        self.epsilon = epsilon

    def __call__(self, rewards: Rewards) -> Tensor:
        centred = rewards.centred
        squares = rewards.peers @ centred.square()
        spread = (squares / (rewards.number - 1).clamp_min(1)).sqrt()
        return (centred / (spread + self.epsilon))[:, None].expand_as(rewards.tokens)


class DrGRPO(Advantage):
    r"""The reward less its group's mean: :math:`A_i = r_i - \bar r`.

    Use it with `normalise: dr`, so that long answers are not favoured where they are wrong.

    Source: Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783.
    """

    grouped = True

    def __call__(self, rewards: Rewards) -> Tensor:
        return rewards.centred[:, None].expand_as(rewards.tokens)


class GAE(Advantage):
    r"""Word by word against a value head, with a trace between bias and variance.

    .. math:: A_t = \sum_{s \ge t} (\gamma\lambda)^{s-t} \delta_s, \qquad
        \delta_t = r_t + \gamma V_{t+1} - V_t

    V behind the last word is 0. The value head learns :math:`A_t + V_t`.

    Source: Schulman et al. 2016, arXiv 1506.02438, equation 16.
    """

    needs_values = True

    def __init__(self, discount: float = 1.0, trace: float = 0.95) -> None:
        """Store the settings.

        Args:
            discount: How much a later reward counts, per word [gamma].
            trace: 0: one step and the value head; 1: the whole return [lambda].
        """
        if not 0 <= discount <= 1 or not 0 <= trace <= 1:
            raise KDError(f"discount and trace lie within 0 to 1, not {discount} and {trace}")
        self.discount = discount
        self.trace = trace

    def __call__(self, rewards: Rewards) -> Tensor:
        values = rewards.values
        assert values is not None
        error = rewards.tokens + self.discount * rewards.following(values) - values
        return rewards.backwards(self.discount * self.trace, error)


class TokenReturn(Advantage):
    r"""What is earned from a word on: the policy gradient of sequence-level distillation.

    .. math:: A_t = \sum_{s \ge t} \gamma^{s-t} r_s, \qquad
        r_t = \log p(y_t) - \log q(y_t)

    with the teacher as reference and `reward_kl: 1`. Undiscounted and with all words, its gradient
    is that of KL(student || teacher) over whole answers. `following`: only what comes after the
    word (MiniLLM's long-horizon part), to be added to `ReverseKL` on the student's own text, which
    is the single-step part; together they are the same gradient with less variance. Discount 0
    keeps the word's own reward alone (on-policy distillation by policy gradient).

    Source: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, equations 2 to 5. Its code discounts by
    0.95, divides what includes the word itself by the words left, and scales over the batch (not
    offered: it would depend on how a step is split).
    """

    def __init__(
        self,
        discount: float = 1.0,
        following: bool = False,
        per_word: Literal["none", "remaining"] = "none",
    ) -> None:
        """Store the settings.

        Args:
            discount: How much a later reward counts, per word [gamma].
            following: Leave the word's own reward out.
            per_word: remaining: divide by the number of words that are added up, against the taste
                for short answers; a bias.
        """
        if not 0 <= discount <= 1:
            raise KDError(f"discount lies within 0 to 1, not {discount}")
        self.discount = discount
        self.following = following
        self.per_word = per_word

    def __call__(self, rewards: Rewards) -> Tensor:
        found = rewards.backwards(self.discount, rewards.tokens)
        if self.following:
            found = self.discount * rewards.following(found)
        if self.per_word == "remaining":
            ones = rewards.where.to(found.dtype)
            left = rewards.backwards(1.0, ones) - float(self.following)
            found = found / left.clamp_min(1)
        return found


class EarlyFirst(Advantage):
    r"""The word's own reward, more for the first words: later ones stand on what they wrote.

    .. math:: A_t = r_t \Big(1 + \gamma \Big(1 - \frac{\sum_{u<t} |r_u|}{\sum_u |r_u|}\Big)\Big)

    Importance-weighted on-policy distillation, with the teacher as reference and `reward_kl: 1`.

    Source: IW-OPD 2026, arXiv 2606.22600.
    """

    def __init__(self, gain: float = 0.5) -> None:
        """Store the settings.

        Args:
            gain: How much more the first word counts [gamma].
        """
        self.gain = gain

    def __call__(self, rewards: Rewards) -> Tensor:
        size = rewards.tokens.abs()
        whole = size.sum(1, keepdim=True)
        before = (size.cumsum(1) - size) / torch.where(whole > 0, whole, 1.0)
        return rewards.tokens * (1 + self.gain * (1 - before))
