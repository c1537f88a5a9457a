"""The trained student as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.comparison import Comparison, best_weights
from kd_lightning.data.base import KDDataModule
from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.evaluation.card import CardFacts
from kd_lightning.evaluation.export import export
from kd_lightning.parallel.whole import in_one_piece


class ExportStudent(Callback):
    """Exports the student (best checkpoint, else last weights) into `<run>/student` at the end.

    The model card shows the results of a Comparison that stands before this callback.
    """

    def __init__(self, folder: str = "student", licences: dict[str, str] | None = None) -> None:
        """Store the settings.

        Args:
            folder: Below the run's.
            licences: Of `teacher`, `student`, `data`, where their own files do not state them.
        """
        self.folder = folder
        self.licences = licences or {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Distiller):
            raise KDError("ExportStudent needs a Distiller")
        with best_weights(trainer, pl_module) as weights:
            student = in_one_piece(pl_module.student, pl_module.spec)
            if trainer.is_global_zero:
                data = getattr(trainer, "datamodule", None)
                compared = next((c for c in trainer.callbacks if isinstance(c, Comparison)), None)  # type: ignore[attr-defined]
                facts = CardFacts(
                    licences=self.licences,
                    results=compared.results if compared is not None else (),
                    split=compared.split if compared is not None else "validation",
                    weights=weights,
                )
                folder = Path(trainer.default_root_dir) / self.folder
                known = data if isinstance(data, KDDataModule) else None
                export(pl_module, folder, student=student, data=known, card=facts, overwrite=True)
                rank_zero_info(f"student exported to {folder} ({weights})")
        trainer.strategy.barrier("export")
