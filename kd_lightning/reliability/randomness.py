"""Random numbers of a step: a function of seed, rank and step, so that a resumed step has them."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class StepRandomness(Callback):
    """Seeds every generator at the beginning of each step.

    What a step draws (dropout, sampling) depends on (seed, rank, step) and on nothing that came
    before, so nothing else need be saved, and a run may go on with another number of ranks. The
    seed is that of `seed_everything`.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self.seed is not None
        seed_step(self.seed, trainer.global_rank, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices)."""
    name = f"{seed}/{rank}/{step}".encode()
    mixed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    _seed_torch(mixed % 2**63)


def _seed_torch(seed: int) -> None:
    """As `torch.manual_seed`, which keeps a stack trace for each type of device not in use."""
    torch.default_generator.manual_seed(seed)
    for devices in (torch.cuda, torch.xpu):
        if devices.is_initialized():
            devices.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
