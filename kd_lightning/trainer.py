"""Lightning's Trainer, with the two commands that it does not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.models.spec import StudentSpec

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule


class KDTrainer(Trainer):
    """A Trainer that also evaluates side by side and exports."""

    def evaluate(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        student: str | None = None,
        baseline: str | None = None,
        split: Literal["train", "validation", "test"] = "test",
        rows: int | None = None,
        output: str | None = None,
    ) -> dict[str, Any]:
        """Teacher, student and a baseline side by side on a data module: table, JSON, plots.

        Args:
            model: the distiller.
            datamodule: the questions and their grader.
            ckpt_path: a checkpoint with the student's weights; None: the student as configured.
            student: folder or hub name of an exported student, in place of the configured one.
            baseline: folder or hub name of a further model to compare with.
            split: which rows.
            rows: how many rows are answered and graded; None: all.
            output: folder for the results; None: `evaluation` in the run's folder.
        """
        from kd_lightning.evaluation.evaluate import evaluate

        if student is not None:
            if ckpt_path is not None:
                raise KDError("evaluate takes either --student or --ckpt_path, not both")
            model.spec = StudentSpec(path=student, attention=model.spec.attention)
        data = self.prepare(model, datamodule, ckpt_path, split)
        folder = Path(output) if output else Path(self.default_root_dir) / "evaluation"
        return evaluate(model, data, folder, baseline=baseline, rows=rows, split=split)

    def export(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """The student as a Hugging Face folder: weights, tokenizer, model card.

        Args:
            model: the distiller.
            datamodule: named in the model card.
            ckpt_path: a checkpoint with the student's weights; None: the student as configured.
            output: the folder to write; None: `student` in the run's folder.
        """
        from kd_lightning.evaluation.card import CardFacts
        from kd_lightning.evaluation.export import export

        data = self.prepare(model, datamodule, ckpt_path, None)
        run = Path(self.default_root_dir)
        folder = Path(output) if output else run / "student"
        export(model, folder, data=data, card=CardFacts.of_run(run))
        rank_zero_info(f"student exported to {folder}")

    def prepare(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        ckpt_path: str | None,
        split: str | None,
    ) -> KDDataModule:
        """Build student, teacher and data in this process, outside any loop."""
        from kd_lightning.data.base import KDDataModule

        assert isinstance(datamodule, KDDataModule)
        if self.world_size > 1:
            raise KDError("evaluate and export run in one process: write --trainer.devices=1")
        self.strategy.connect(model)
        model.trainer = self
        datamodule.trainer = self
        self.datamodule = datamodule
        datamodule.tokenizer = model.tokenizer
        if split is not None:
            datamodule.setup({"train": "fit", "validation": "validate"}.get(split, "test"))
        model.configure_model()
        if ckpt_path is not None:
            load_weights(model, Path(ckpt_path))
        model.to(self.strategy.root_device)
        return datamodule


def load_weights(model: Distiller, checkpoint: Path) -> None:
    """The student's weights (and the loss's state) out of a checkpoint; nothing else of it."""
    if not checkpoint.is_file():
        raise KDError(f"there is no checkpoint {checkpoint}")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise KDError(
            f"the checkpoint {checkpoint} is of another student or loss than the configuration: "
            f"{str(error).splitlines()[1].strip()}"
        ) from error
