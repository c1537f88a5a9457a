"""What all processes of a run must decide alike."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer


def largest(trainer: Trainer, value: int) -> int:
    """The largest of the ranks' values; a collective call."""
    if trainer.world_size == 1:
        return value
    told = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(told, reduce_op="max"))  # type: ignore[arg-type]
