"""What a loss knows of the student that drew answers, before steps change it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kd_lightning.losses.base import Loss
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.modes import evaluating
from kd_lightning.types import Batch, ModelOutput


@torch.no_grad()
def remembered(
    student: CausalLM, loss: Loss, split: Callable[[Batch], list[Batch]], batch: Batch
) -> Batch:
    """The batch with what `loss.remember` says of it; a collective call.

    Args:
        student: Who drew the answers, as it was then.
        loss: What the steps will minimise.
        split: Into micro-batches, as many on every rank.
        batch: The answers.
    """
    if not loss.remembers:
        return batch

    def told(piece: Batch, output: ModelOutput) -> dict[str, Tensor]:
        return loss.remember(output, piece)

    found: dict[str, Tensor] = {}
    start = 0
    with evaluating(student):
        for piece in split(batch):  # those beyond the rows keep ranks in step
            said = student(piece, partial(told, piece))
            for name, value in said.items() if start < len(batch) else ():
                empty = value.new_zeros(batch.targets.shape)
                rows = found.setdefault(name, empty)[start : start + len(piece)]
                rows[:, : value.shape[1]] = value
            start += len(piece)
    return batch.replace(**found)
