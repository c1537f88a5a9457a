"""The head of a trained reward model, beside its exported student."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.comparison import best_weights
from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.rewards.head import head_of, write_head


class ExportRewardModel(Callback):
    """Writes the learned head into the folder of ExportStudent, which stands before it.

    The folder is then a RewardModel's path.
    """

    def __init__(self, folder: str = "student") -> None:
        """Store the settings.

        Args:
            folder: The same as ExportStudent's, below the run's.
        """
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Distiller):
            raise KDError("ExportRewardModel needs a Distiller")
        head_of(pl_module.loss)  # refuse another loss before training

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Distiller)
        with best_weights(trainer, pl_module) as weights:
            if trainer.is_global_zero:
                folder = Path(trainer.default_root_dir) / self.folder
                write_head(folder, head_of(pl_module.loss))
                rank_zero_info(f"reward model exported to {folder} ({weights})")
        trainer.strategy.barrier("export reward model")
