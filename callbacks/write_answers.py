"""What `predict` leaves behind: the student's answers as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info


class WriteAnswers(BasePredictionWriter):
    """Each answer with its id, references and grades: `<run>/predictions.jsonl`, a line at once.

    Several processes write a file each (`predictions-1.jsonl` ...).
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self.path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        rank_zero_info(f"answers are written to {path}")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        with self.path(trainer).open("a", encoding="utf-8") as file:
            for answer in prediction:
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")

    def path(self, trainer: Trainer) -> Path:
        """This process's file."""
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        return Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
