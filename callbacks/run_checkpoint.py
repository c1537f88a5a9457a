"""Checkpoints in the run's folder, whatever the loggers."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, writing into `<run>/checkpoints` unless told otherwise.

    Lightning would choose a folder of the first logger, for example `<project>/<run id>`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str((Path(trainer.default_root_dir) / "checkpoints").absolute())
        super().setup(trainer, pl_module, stage)
