"""Where a run stands, in the terminal or in a log."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
)
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import TextColumn

from callbacks.throughput import Meter
from kd_lightning.types import Batch

SHOWN = {"train/loss": "loss", "val/kl": "val KL", "val/loss": "val loss"}
"""Metrics behind the bar, with short names; `val/loss` only where there is no `val/kl`."""


class DistillationProgress(RichProgressBar):
    """A bar with tokens per second, time left and the headline metrics.

    Without a terminal (a log file, a batch queue): one line now and then.
    """

    def __init__(self, refresh_rate: int = 4, log_every_seconds: float = 30.0) -> None:
        """Store the settings.

        Args:
            refresh_rate: Of the bar, per second.
            log_every_seconds: Between lines in a log.
        """
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.log_every_seconds = log_every_seconds
        self._meter = Meter()
        self._speed: float | None = None
        self._began = self._read = self._said = 0.0
        self._first_step = 0
        self._lines = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        console = Console()
        if not console.is_terminal or console.is_dumb_terminal:
            self._lines = self.is_enabled or self._lines
            self.disable()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """The epoch's bar; time and speed stand among the metrics, for the whole run."""
        return [
            TextColumn("[progress.description]{task.description}"),
            CustomBarColumn(
                complete_style=self.theme.progress_bar,
                finished_style=self.theme.progress_bar_finished,
                pulse_style=self.theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=self.theme.batch_progress),
        ]

    def _get_train_description(self, current_epoch: int) -> str:
        """Lightning's would end with `/-2` where the length is given in steps (no public hook)."""
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._meter.start()
        self._began = self._read = self._said = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if isinstance(batch, Batch):
            self._meter.add(batch)
            if now - self._read >= 1.0:
                tokens, _, seconds = self._meter.read()
                self._speed = trainer.world_size * tokens / seconds  # ranks get equal shares
                self._read = now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._lines and now - self._said >= self.log_every_seconds:
            self.say(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.pause()
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._meter.resume()
        if self._lines and not trainer.sanity_checking and trainer.state.fn == "fit":
            self.say(trainer, pl_module)

    def say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line for the log."""
        self._said = time.monotonic()
        metrics = self.get_metrics(trainer, pl_module)
        shown = [f"{k} {v if isinstance(v, str) else f'{v:.3f}'}" for k, v in metrics.items()]
        total = self._total(trainer)
        place = f"step {trainer.global_step}" + (f"/{total}" if total else "")
        rank_zero_info(", ".join([place, *shown]))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Headline metrics, speed and the time that the rest of the run takes."""
        known = trainer.callback_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {
            short: float(known[name])
            for name, short in SHOWN.items()
            if name in known and not (name == "val/loss" and "val/kl" in known)
        }
        if self._speed is not None:
            shown["tokens/s"] = f"{self._speed:,.0f}"
        left = self._left(trainer)
        if left is not None:
            shown["left"] = str(timedelta(seconds=round(left)))
        return shown

    def _total(self, trainer: Trainer) -> int:
        total = trainer.estimated_stepping_batches
        return int(total) if 0 < total < float("inf") else 0

    def _left(self, trainer: Trainer) -> float | None:
        done, total = trainer.global_step - self._first_step, self._total(trainer)
        if done <= 0 or total <= 0:
            return None
        return (time.monotonic() - self._began) / done * (total - trainer.global_step)
