"""Checkpoints in the run's folder, whatever the loggers."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, writing into `<run>/checkpoints` unless told otherwise.

    Besides the best ones, `last.ckpt` is always the latest state: written at each validation and
    at the end of each epoch and of the run. (Lightning would choose a folder of the first logger,
    and with a monitored metric its `save_last` is the last improvement: leave it out.)
    """

    _written: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str((Path(trainer.default_root_dir) / "checkpoints").absolute())
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self.write_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._written != trainer.global_step:
            self.write_last(trainer)

    def write_last(self, trainer: Trainer) -> None:
        """The latest state; a collective call."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None
        path = Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        self.last_model_path = str(path)
        self._written = trainer.global_step
        trainer.save_checkpoint(path, self.save_weights_only)
