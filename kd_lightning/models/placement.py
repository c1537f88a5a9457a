"""Where a model's weights are, as far as its own code has to know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """A sharded model's whereabouts; one that is whole on its device has none."""

    device: torch.device
    """Where it computes, wherever its shards wait."""
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around generation: layers stay gathered from token to token; a collective call."""
    in_step: bool = True
    """Whether generation exchanges weights at every token, so that ranks must stay in step."""
