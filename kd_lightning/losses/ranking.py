"""Learning from which answer is better: a score for each answer, and how scores are compared."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import WORDS, AnswerLoss, Reference, reference_logprobs, spoken
from kd_lightning.losses.chunks import Watch, show
from kd_lightning.losses.comparators import Comparator
from kd_lightning.losses.ranks import Ranks
from kd_lightning.losses.scores import Said, Score
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import Batch, LossOutput, ModelOutput, Signal


class Ranking(AnswerLoss):
    r"""Preference learning: DPO and its relatives, reward models, rankings.

    .. math:: \ell = \frac{w}{G} \sum_g C\big(\beta s_1, \ldots, \beta s_K\big)
        + \lambda \, \mathrm{NLL}(y_{best})

    A batch's rows are answers; those with the same `group` answer one prompt and are compared by
    their `reward` (any order-preserving number; nan: takes no part). Whole groups are in one
    micro-batch and on one rank, so how a step is split changes nothing. Terms: `ranking`, averaged
    over what the comparator counts, and `sft`.
    """

    def __init__(
        self,
        score: Score,
        comparator: Comparator,
        beta: float = 1.0,
        weight: float = 1.0,
        sft_weight: float = 0.0,
        sft_per: Literal["token", "answer"] = "token",
        reference: Reference = "teacher",
    ) -> None:
        """Store the settings.

        Args:
            score: What an answer is worth to the student.
            comparator: How scores and rewards make a loss.
            beta: Multiplies the scores.
            weight: Of the comparison, beside the likelihood of the best answers [w].
            sft_weight: Of the best answers' negative log-likelihood [lambda].
            sft_per: What it is averaged over: token, all tokens of best answers alike; answer, each
                best answer's own mean alike.
            reference: For scores that read one: teacher, the teacher is the frozen reference;
                cached, its log-probabilities come with the batch.
        """
        super().__init__()
        if not math.isfinite(beta) or beta <= 0:
            raise KDError(f"beta must be above 0, not {beta}")
        for name, number in (("weight", weight), ("sft_weight", sft_weight)):
            if not math.isfinite(number) or number < 0:
                raise KDError(f"{name} must be at least 0, not {number}")
        self.score = score
        self.comparator = comparator
        self.beta = beta
        self.weight = weight
        self.sft_weight = sft_weight
        self.sft_per = sft_per
        self.reference = reference
        if score.reads_reference and reference == "teacher":
            self.needs = frozenset({Signal.LOGITS})

    def count(self, batch: Batch) -> dict[str, Tensor]:
        ranks = self._ranks(batch)
        counts = {"ranking": self.comparator.count(ranks)}
        if self.sft_weight:
            per_token = self.sft_per == "token"
            counts["sft"] = (
                self._best(batch, ranks).sum() if per_token else ranks.best.sum().float()
            )
        return counts

    def sums(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        watch: Watch | None = None,
    ) -> LossOutput:
        ranks, where = self._ranks(batch), spoken(batch)
        logp = student.hidden.new_zeros(where.shape)
        if self.score.reads_words or self.sft_weight:
            counted = where.to(batch.weights)
            words = TokenSum({"nll": WORDS}, student, teacher, batch, watch=watch, counted=counted)
            logp = -torch.where(where, words.values()["nll"], 0.0)
        elif watch is not None:
            show(watch, student, teacher, batch)
        scores = self.beta * self.score(self._said(student, teacher, batch, logp))
        terms = {"ranking": self.weight * self.comparator(scores, ranks)}
        if self.sft_weight:
            weights = self._best(batch, ranks).to(logp.dtype)
            if self.sft_per == "answer":
                total = weights.sum(1, keepdim=True)
                weights = weights / torch.where(total > 0, total, 1.0)
            terms["sft"] = -self.sft_weight * (weights * logp).sum()
        return LossOutput(terms)

    def _ranks(self, batch: Batch) -> Ranks:
        return Ranks.of(batch, self.comparator.grouped, demanded=self.training)

    def _best(self, batch: Batch, ranks: Ranks) -> Tensor:
        """The words' weights of the best answers, `[B, T]`; 0 elsewhere."""
        return batch.weights * spoken(batch) * ranks.best[:, None]

    def _said(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch, logp: Tensor
    ) -> Said:
        where = spoken(batch)
        place = torch.arange(where.shape[1], device=where.device)
        last = torch.where(where, place, 0).amax(1)
        kept: Tensor | None = None
        if self.score.reads_reference:
            kept = reference_logprobs(self.reference, teacher, batch)
            kept = kept if kept.ndim == 1 else kept.sum(1)
        texts = self.score.reads_texts
        return Said(
            logp=logp.sum(1),
            reference=kept,
            length=where.sum(1).clamp_min(1),
            state=student.hidden[torch.arange(len(last), device=last.device), last],
            text=_mean(student.hidden, batch.attention_mask) if texts else None,
            question=self._ranks(batch).question if texts else None,
        )


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Over each row's tokens, `[B, T, D]` to `[B, D]`."""
    weights = mask.to(states.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("btd,bt->bd", states, weights)
