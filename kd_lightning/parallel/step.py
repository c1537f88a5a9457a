"""What one optimizer step needs between processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor, nn

from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import most
from kd_lightning.types import Batch


def synchronised(strategy: Strategy, last: bool) -> AbstractContextManager[None]:
    """Exchange gradients between processes on the last micro-batch only."""
    if last or not isinstance(strategy, ParallelStrategy):
        return nullcontext()
    return strategy.block_backward_sync()


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """The gradient's 2-norm `[]`; gradients scaled down to the limit where it is above."""
    trained = [p for p in parameters if p.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    whole = getattr(norm, "full_tensor", None)  # of shards: still to be put together
    made: Tensor = norm if whole is None else whole()
    return made


def evened(pieces: list[Batch], device: torch.device) -> list[Batch]:
    """As many micro-batches on every rank, filled up with masked ones; a collective call."""
    if not (dist.is_available() and dist.is_initialized()):
        return pieces
    return pieces + [pieces[0].masked()] * (most(len(pieces), device) - len(pieces))


def summed(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Sums over all ranks, in one exchange and in float64; a collective call."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return dict(values)
    stacked = torch.stack([v.detach().to(device, torch.float64) for v in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.unbind(), strict=True))


def anywhere(number: int, model: CausalLM) -> int:
    """Prompts here, or (sharded models answer together) at the busiest rank; collective then."""
    return number if model.placement is None else most(number, model.device)
