"""How fast a run is."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kd_lightning.types import Batch


class Meter:
    """Tokens and training time since the last reading; counting never waits for the device."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget what was counted; the clock runs."""
        self._tokens: Tensor | int = 0
        self._steps = 0
        self._spent = 0.0
        self._since: float | None = time.monotonic()

    def add(self, batch: Batch) -> None:
        """Count a step."""
        self._tokens = self._tokens + batch.attention_mask.sum()
        self._steps += 1

    def pause(self) -> None:
        """Stop the clock (validation)."""
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def resume(self) -> None:
        """Let the clock run again."""
        if self._since is None:
            self._since = time.monotonic()

    def read(self) -> tuple[int, int, float]:
        """Tokens of this rank, steps and seconds since the last reading."""
        tokens, steps = int(self._tokens), self._steps
        running = self._since is not None
        self.pause()
        seconds = self._spent
        self.start()
        if not running:
            self._since = None
        return tokens, steps, max(seconds, 1e-9)


class Throughput(Callback):
    """Logs `train/tokens_per_second` (prompt and answer, all ranks) and `train/step_seconds`."""

    def __init__(self) -> None:
        self._meter = Meter()
        self.tokens_seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._meter.add(batch)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every != 0:
            return
        tokens, steps, seconds = self._meter.read()
        total = tokens
        if trainer.world_size > 1:
            mine = torch.tensor(float(tokens), dtype=torch.float64, device=pl_module.device)
            total = int(trainer.strategy.reduce(mine, reduce_op="sum"))
        self.tokens_seen += total
        table = {
            "train/tokens_per_second": total / seconds,
            "train/step_seconds": seconds / steps,
            "train/tokens_seen": float(self.tokens_seen),
        }
        for logger in trainer.loggers:
            logger.log_metrics(table, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.resume()

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens_seen = int(state_dict["tokens_seen"])
