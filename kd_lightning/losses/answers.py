"""What losses on whole answers share: the log-probabilities of their words, made chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Loss
from kd_lightning.losses.chunks import Watch, at_positions, show
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import IGNORE, Batch, LossOutput, ModelOutput

WORDS = CrossEntropy()
"""-log p(target) of each word; one object, so that a compiled tile is compiled once."""

Reference: TypeAlias = Literal["teacher", "cached"]
"""Where a frozen model's log-probabilities come from: the teacher's forward, or the batch."""


def spoken(batch: Batch) -> Tensor:
    """Which positions belong to an answer, `[B, T]` bool: a target whose weight is not 0."""
    return (batch.targets != IGNORE) & (batch.weights != 0)


def wide(states: Tensor) -> Tensor:
    """Half precision to float32 before a head of one's own; others as they are."""
    return states.float() if states.dtype in (torch.bfloat16, torch.float16) else states


@torch.no_grad()
def reference_logprobs(kind: Reference, teacher: ModelOutput | None, batch: Batch) -> Tensor:
    """A frozen model's log p(target): `[B, T]`, 0 outside the answers, or `[B]` sums.

    Over all of its own rows, as the student's: a copy of the student has a ratio of exactly 1.
    """
    where = spoken(batch)
    if kind == "cached":
        if batch.reference is None:
            raise KDError(
                "reference: cached needs log-probabilities in the batch: give the rollout a "
                "reference model, or write reference: teacher"
            )
        kept = batch.reference
        return kept if kept.ndim == 1 else torch.where(where, kept, 0.0)
    assert teacher is not None  # `needs` asks for it
    if teacher.sparse is not None:
        rows = where.flatten().nonzero().squeeze(-1)
        label = at_positions(teacher.sparse, batch, rows).label
        return label.new_zeros(where.numel()).index_copy(0, rows, label).view(where.shape)
    counted = where.to(batch.weights)
    nll = TokenSum({"nll": WORDS}, teacher, None, batch, counted=counted).values()["nll"]
    return -nll


class AnswerLoss(Loss, ABC):
    """A loss on whole answers and what is known of them: rewards, groups, who drew them.

    Batches without rewards: an error in training; in validation, where rows are ordinary ones,
    nothing is counted.
    """

    def ready(self, batch: Batch) -> bool:
        """Whether the batch has what the loss is about."""
        return batch.reward is not None

    @abstractmethod
    def sums(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        watch: Watch | None = None,
    ) -> LossOutput:
        """As `forward`, of a batch that has rewards; shows the tokens on the way."""

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        return self._guarded(student, teacher, batch, None)

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
        watch: Watch | None = None,
    ) -> tuple[Tensor, LossOutput]:
        output = self._guarded(student, teacher, batch, watch)
        parts = [value / counts[name].clamp_min(1e-9) for name, value in output.terms.items()]
        return torch.stack(parts).sum(), output

    def _guarded(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        watch: Watch | None,
    ) -> LossOutput:
        if self.training or self.ready(batch):
            return self.sums(student, teacher, batch, watch)
        if watch is not None:
            show(watch, student, teacher, batch)
        nothing = student.hidden.new_zeros(())
        return LossOutput(dict.fromkeys(self.count(batch), nothing))
