"""Learning from rewards of the student's own answers."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.advantages import Advantage, Rewards
from kd_lightning.losses.answers import WORDS, AnswerLoss, Reference, reference_logprobs, spoken
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.chunks import Watch
from kd_lightning.losses.entropy import Entropy
from kd_lightning.losses.kl import ReverseKL
from kd_lightning.losses.penalties import Penalty
from kd_lightning.losses.surrogates import ScoreFunction, Surrogate, log_ratio
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.types import Batch, LossOutput, ModelOutput, Progress, Signal


class PolicyGradient(AnswerLoss):
    r"""Raise what earned more than expected, lower what earned less.

    .. math:: \ell = \frac{1}{N} \sum_{i,t} S\big(\log q(y_{it}), A_{it}\big) + \kappa\,
        \mathrm{KL}_{it} - \eta\, H_{it} + \nu\, \tfrac12 (V_{it} - R_{it})^2

    A batch's rows are answers that the student (or `behaviour`) drew, with a `reward` each (nan:
    takes no part); answers to one prompt have one `group`, and whole groups are in one micro-batch
    and on one rank, so how a step is split changes nothing. A word's reward is

    .. math:: r_t = -\beta \big(\log q(y_t) - \log q_0(y_t)\big) + [t = T]\, r

    with the student's present q, whoever drew the word (`reward_policy: drawn`: the q that drew
    it). Answers that serve several steps (`Reuse`) bring what the value head expected when they
    were drawn: advantages and returns are then those of that moment, step after step. `advantages`
    in the batch stand in for those made here. Terms: `policy`, `kl`, `entropy`, `value`. Reward and
    divergence together, (1 - a) r - a D: a `Weighted` of this and a divergence.
    """

    def __init__(
        self,
        advantage: Advantage,
        surrogate: Surrogate | None = None,
        normalise: Literal["token", "sequence", "dr"] = "token",
        length: int = 1,
        reward_kl: float = 0.0,
        kl: Penalty | None = None,
        kl_weight: float = 0.1,
        entropy_weight: float = 0.0,
        value: ValueHead | None = None,
        value_weight: float = 0.5,
        reference: Reference = "teacher",
        reward_policy: Literal["present", "drawn"] = "present",
    ) -> None:
        """Store the settings.

        Args:
            advantage: How rewards become what words are weighed by.
            surrogate: What is differentiated; null: ScoreFunction.
            normalise: What sums are divided by: token, all words of all answers; sequence, each
                answer's own mean, averaged (GRPO: words of long answers count less); dr, answers
                times `length`, a constant (Dr. GRPO; with length 1, each answer's sum).
            length: Words that an answer is taken to have, for dr.
            reward_kl: Penalty in the reward for leaving the reference [beta].
            kl: Penalty as a term of the loss; null: none.
            kl_weight: Of that term [kappa].
            entropy_weight: Bonus for being undecided [eta].
            value: What GAE expects by; it learns along.
            value_weight: Of its error [nu].
            reference: teacher, the teacher is the reference; cached, its log-probabilities come
                with the batch.
            reward_policy: Whose q the penalty in the reward is about: present, the student's of the
                step; drawn, that of the policy that drew the words, where it is known (PPO).
        """
        super().__init__()
        for name, number in (("reward_kl", reward_kl), ("kl_weight", kl_weight)):
            if not math.isfinite(number) or number < 0:
                raise KDError(f"{name} must be at least 0, not {number}")
        if length < 1:
            raise KDError(f"length must be at least 1, not {length}")
        if advantage.needs_values != (value is not None):
            raise KDError("GAE and a value head go together: write both, or neither")
        if kl is not None and kl.whole and reference == "cached":
            raise KDError(
                f"{type(kl).__name__} compares whole distributions: write reference: teacher, or "
                "kl: K2"
            )
        self.advantage = advantage
        self.surrogate = surrogate
        self.normalise = normalise
        self.length = length
        self.reward_kl = reward_kl
        self.reward_policy = reward_policy
        self.kl = kl
        self.kl_weight = kl_weight
        self.entropy_weight = entropy_weight
        self.value = value
        self.value_weight = value_weight
        self.reference = reference
        parts: dict[str, TokenLoss] = {"nll": WORDS}
        if kl is not None and kl.whole:
            parts["whole"] = ReverseKL()
        if entropy_weight:
            parts["entropy"] = Entropy()
        self.parts = nn.ModuleDict(parts)
        self._clipped: Tensor | None = None  # in this step: words clipped, words
        self._refers = reward_kl > 0 or kl is not None
        if self._refers and reference == "teacher":
            self.needs = frozenset({Signal.LOGITS})

    @property
    def temperatures(self) -> frozenset[float]:
        return frozenset([1.0]) if self.needs else frozenset()

    def ready(self, batch: Batch) -> bool:
        return batch.reward is not None or batch.advantages is not None or self.reward_kl > 0

    def begin_step(self, progress: Progress) -> None:
        self._clipped = None

    def measured(self) -> dict[str, Tensor]:
        return {} if self._clipped is None else {"clipped": self._clipped}

    @property
    def remembers(self) -> bool:
        return self.value is not None

    def remember(self, student: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        return {} if self.value is None else {"values": self.value(student.hidden)}

    # ---- what counts --------------------------------------------------------------------------

    def count(self, batch: Batch) -> dict[str, Tensor]:
        where = self._where(batch)
        number = where.any(1).sum().float()
        if self.normalise == "token":
            number = (batch.weights * where).sum()
        elif self.normalise == "dr":
            number = number * self.length
        on = {
            "policy": True,
            "kl": self.kl is not None,
            "entropy": bool(self.entropy_weight),
            "value": self.value is not None,
        }
        return {name: number for name, there in on.items() if there}

    def _where(self, batch: Batch) -> Tensor:
        """The words that take part, `[B, T]` bool."""
        where = spoken(batch)
        if batch.advantages is not None:
            return where
        if batch.reward is not None:
            return where & ~batch.reward.isnan()[:, None]
        if self.reward_kl > 0 or not self.training:
            return where if self.ready(batch) else torch.zeros_like(where)
        raise KDError(
            "a policy gradient needs a reward for each row of the batch: give it answers with "
            "rewards (a rollout), or reward_kl above 0"
        )

    def _sum(self, values: Tensor, batch: Batch, where: Tensor) -> Tensor:
        """What is divided by the count, `[]`."""
        weights = (batch.weights * where).to(values.dtype)
        if self.normalise == "sequence":
            total = weights.sum(1, keepdim=True)
            weights = weights / torch.where(total > 0, total, 1.0)
        return (weights * torch.where(where, values, 0.0)).sum()

    # ---- the terms ----------------------------------------------------------------------------

    def sums(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        watch: Watch | None = None,
    ) -> LossOutput:
        where = self._where(batch)
        parts = {name: cast(TokenLoss, part) for name, part in self.parts.items()}
        counted = where.to(batch.weights)
        made = TokenSum(parts, student, teacher, batch, watch=watch, counted=counted).values()
        logp = -torch.where(where, made["nll"], 0.0)
        old = logp.detach() if batch.behaviour is None else batch.behaviour
        fixed = self._reference(teacher, batch) if self._refers else torch.zeros_like(logp)
        values = None if self.value is None else self.value(student.hidden)
        drawn = old if self.reward_policy == "drawn" else logp
        before = values if batch.values is None or values is None else batch.values.to(values)
        advantages, returns = self._advantages(batch, where, drawn, fixed, before)
        surrogate = self.surrogate or ScoreFunction()
        terms = {"policy": surrogate(logp, old, advantages, where)}
        self._look(surrogate, logp.detach(), old, advantages, where)
        if self.kl is not None:
            ratio = log_ratio(logp, old, where).exp()
            each = made["whole"] if self.kl.whole else self.kl(logp, fixed, ratio)
            terms["kl"] = self.kl_weight * each
        if self.entropy_weight:
            terms["entropy"] = -self.entropy_weight * made["entropy"]
        if values is not None:
            terms["value"] = self.value_weight * 0.5 * (values - returns).square()
        return LossOutput({name: self._sum(each, batch, where) for name, each in terms.items()})

    @torch.no_grad()
    def _look(
        self, surrogate: Surrogate, logp: Tensor, old: Tensor, advantages: Tensor, where: Tensor
    ) -> None:
        """Count what the clip took away."""
        taken = surrogate.clipped(logp, old, advantages, where)
        if self.training and taken is not None:
            seen = torch.stack([taken.sum(), where.sum()]).double()
            self._clipped = seen if self._clipped is None else self._clipped + seen

    def _reference(self, teacher: ModelOutput | None, batch: Batch) -> Tensor:
        kept = reference_logprobs(self.reference, teacher, batch)
        if kept.ndim == 1:
            raise KDError(
                "a policy gradient needs the reference's log-probability of each word, not of "
                "whole answers: give the batch a reference of shape [B, T]"
            )
        return kept

    @torch.no_grad()
    def _advantages(
        self, batch: Batch, where: Tensor, logp: Tensor, fixed: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Advantages and what the value head should have said, both `[B, T]`."""
        if batch.advantages is not None:
            if values is not None:
                raise KDError("a value head learns from rewards: leave advantages out of the batch")
            given = batch.advantages
            given = given[:, None].expand_as(logp) if given.ndim == 1 else given
            return torch.where(where, given, 0.0), torch.zeros_like(logp)
        if self.training and self.advantage.grouped and batch.group is None:
            raise KDError(
                f"{type(self.advantage).__name__} compares the answers to one prompt: give each "
                "row of the batch the number of its group"
            )
        tokens = torch.where(where, -self.reward_kl * (logp - fixed), 0.0)
        if batch.reward is not None:
            places = torch.arange(where.shape[1], device=where.device)
            last = torch.where(where, places, -1).amax(1, keepdim=True)
            reward = batch.reward.nan_to_num(0.0).to(tokens.dtype)[:, None]
            tokens = tokens + torch.where((places == last) & where, reward, 0.0)
        group = batch.group
        if group is None:
            group = torch.arange(len(batch), device=where.device)
        kept = None if values is None else torch.where(where, values, 0.0)
        rewards = Rewards(tokens, where, group, kept)
        advantages = self.advantage(rewards)
        returns = torch.zeros_like(logp) if kept is None else advantages + kept
        return torch.where(where, advantages, 0.0), returns
