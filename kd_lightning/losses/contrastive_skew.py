"""Skewed divergences of given and of own words, each answer skewed by how far the models are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import WORDS, reference_logprobs, spoken
from kd_lightning.losses.base import Loss, TokenLoss
from kd_lightning.losses.chunks import Watch
from kd_lightning.losses.on_source import OnSource
from kd_lightning.losses.skew import Skewed, SkewForwardKL, SkewReverseKL
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.schedules import Schedule
from kd_lightning.types import Batch, LossOutput, ModelOutput, Progress, Signal, Source

KINDS = ("given", "own")
NOTHING = (torch.zeros(2, dtype=torch.float64),) * 2
"""Of given and own answers: the sum of their differences, and their number."""


class ContrastiveSkew(Loss):
    r"""Raise the teacher's answers, lower the student's own, hard answers skewed more.

    .. math:: (2 - \beta)\, \mathrm{KL}\big(p \,\|\, \alpha_1 p + (1 - \alpha_1) q\big)
        \;\text{on given words} \; + \; \beta\, \mathrm{KL}\big(q \,\|\, (1 - \alpha_2) p
        + \alpha_2 q\big) \;\text{on own words}

    Each answer y has an alpha of its own, so that its first-order loss is that of a mean answer at
    the strength :math:`\alpha_0` (from :math:`\log p - \log(\alpha p + (1 - \alpha) q) \approx
    (1 - \alpha)(p - q)`, the first term of Mercator's series):

    .. math:: \alpha_1(y) = \mathrm{clip}\Big(1 - (1 - \alpha_0) \frac{m_1}{\bar p(y) - \bar q(y)},
        \; \alpha_{min}, \; \alpha_0\Big), \qquad
        \bar p(y) = \Big(\prod_t p(y_t)\Big)^{1/|y|}

    and :math:`\alpha_2` with :math:`\bar q - \bar p`; where that difference is not above 0, alpha
    is the least. m is the mean difference of all answers, a moving average over the steps before
    (of all ranks, in the checkpoint), so how a step is split changes nothing; in the first step
    alpha is :math:`\alpha_0`. The released code takes the mean of the first steps that it logs and
    keeps it, takes :math:`\alpha_0` where the difference is negative, and lets no gradient run
    through the second mixture.

    Source: Ko et al. 2025 (DistiLLM-2), arXiv 2503.07067, section 3 (contrastive loss, adaptive
    alpha, growing beta).
    """

    gap: Tensor

    def __init__(
        self,
        skew: float = 0.1,
        least: float = 0.01,
        adaptive: bool = True,
        momentum: float = 0.9,
        balance: float | Schedule = 1.0,
        normalise: Literal["sequence", "token"] = "sequence",
        temperature: float = 1.0,
    ) -> None:
        """Store the settings.

        Args:
            skew: The strength of a mean answer, and the largest [alpha_0].
            least: The smallest [alpha_min].
            adaptive: Whether each answer has its own; False: all have `skew`.
            momentum: How much of the former mean difference is kept at each step; 0: the last
                step's alone.
            balance: Weight of own words; given words have what is left to 2 [beta]. Published:
                1, or from 1 to 1.5 over the first half of the run.
            normalise: sequence, the mean of each answer's mean (published); token, of all words.
            temperature: Divides both models' logits in the loss [T]; alpha is always made at 1.
        """
        super().__init__()
        if not 0 < least <= skew < 1:
            raise KDError(f"0 < least <= skew < 1 must hold, not least {least} and skew {skew}")
        if not 0 <= momentum < 1:
            raise KDError(f"momentum lies within 0 to below 1, not {momentum}")
        if not isinstance(balance, Schedule) and not 0 <= balance <= 2:
            raise KDError(f"balance lies within 0 to 2, not {balance}")
        self.skew = skew
        self.least = least
        self.adaptive = adaptive
        self.momentum = momentum
        self.balance = balance
        self.normalise = normalise
        self.temperature = temperature
        forward, reverse = SkewForwardKL(skew, temperature), SkewReverseKL(skew, temperature)
        forward.varies = reverse.varies = adaptive
        self.terms = nn.ModuleDict(
            {
                "given": OnSource(forward, ["gold", "teacher"]),
                "own": OnSource(reverse, ["student"]),
            }
        )
        self.needs = frozenset({Signal.LOGITS})
        self.register_buffer("gap", torch.full((2,), math.nan))
        self._sums = list(NOTHING)
        self._progress = Progress(0, 1)

    @property
    def temperatures(self) -> frozenset[float]:
        return frozenset([self.temperature])

    @property
    def linear_in_teacher(self) -> bool:
        return False

    # ---- steps --------------------------------------------------------------------------------

    def begin_step(self, progress: Progress) -> None:
        self._progress = progress
        self._sums = list(NOTHING)

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor]) -> None:
        """The mean differences of the step move the average; a collective call."""
        sums = torch.stack(self._sums).to(self.gap.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        mean = (sums[:, 0] / sums[:, 1]).to(self.gap)
        moved = torch.where(self.gap.isnan(), mean, self.gap.lerp(mean, 1 - self.momentum))
        self.gap.copy_(torch.where(sums[:, 1] > 0, moved, self.gap))

    def weights(self) -> dict[str, float]:
        """Of given and own words in the present step."""
        beta = self.balance(self._progress) if isinstance(self.balance, Schedule) else self.balance
        return {"given": 2 - float(beta), "own": float(beta)}

    # ---- values -------------------------------------------------------------------------------

    def count(self, batch: Batch) -> dict[str, Tensor]:
        counted = {name: term.counted(batch) for name, term in self._each()}
        if self.normalise == "token":
            return {name: weights.sum() for name, weights in counted.items()}
        return {name: weights.ne(0).any(1).sum().float() for name, weights in counted.items()}

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        return self._output(self._sum(student, teacher, batch).terms())

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
        watch: Watch | None = None,
    ) -> tuple[Tensor, LossOutput]:
        made = self._sum(student, teacher, batch, watch)
        total, terms = made.total(self.weights(), counts)
        return total, self._output(terms)

    def _output(self, terms: Mapping[str, Tensor]) -> LossOutput:
        weights = self.weights()
        return LossOutput({name: weights[name] * value for name, value in terms.items()})

    def _sum(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        watch: Watch | None = None,
    ) -> TokenSum:
        if self.adaptive:
            alphas = self.alphas(student, teacher, batch)
            for (_, term), alpha in zip(self._each(), alphas, strict=True):
                cast(Skewed, term.loss).each = alpha[:, None].expand(batch.targets.shape).flatten()
        terms: dict[str, TokenLoss] = dict(self._each())
        return TokenSum(terms, student, teacher, self._weighed(batch), watch=watch)

    @torch.no_grad()
    def alphas(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The strength of each answer's skew, were it given and were it the student's, `[B]`."""
        where = spoken(batch)
        counted = where.to(batch.weights)
        own = TokenSum({"nll": WORDS}, student, None, batch, counted=counted).values()["nll"]
        told = reference_logprobs("teacher", teacher, batch).to(own)
        number = where.sum(1).clamp_min(1)
        difference = (told.sum(1) / number).exp() - (-own.sum(1) / number).exp()
        if self.training:
            mine = batch.source == Source.STUDENT
            for row, (sign, rows) in enumerate(((1, ~mine), (-1, mine))):
                chosen = (rows & where.any(1)).double()
                seen = torch.stack([(sign * difference.double() * chosen).sum(), chosen.sum()])
                self._sums[row] = self._sums[row].to(seen) + seen
        return self._alpha(difference, self.gap[0]), self._alpha(-difference, self.gap[1])

    def _alpha(self, difference: Tensor, mean: Tensor) -> Tensor:
        safe = torch.where(difference > 0, difference, 1.0)
        found = (1 - (1 - self.skew) * mean.to(safe) / safe).clamp(self.least, self.skew)
        found = torch.where(difference > 0, found, self.least)
        return torch.where(mean.isnan(), self.skew, found)

    def _weighed(self, batch: Batch) -> Batch:
        """Weights such that each answer counts 1, where that is asked for."""
        if self.normalise == "token":
            return batch
        weights = batch.weights * spoken(batch)
        total = weights.sum(1, keepdim=True)
        return batch.replace(weights=weights / torch.where(total > 0, total, 1.0))

    def _each(self) -> list[tuple[str, OnSource]]:
        return [(name, cast(OnSource, self.terms[name])) for name in KINDS]
