"""Lightning's Trainer, with the commands that it does not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.models import vocabulary
from kd_lightning.models.spec import StudentSpec
from kd_lightning.parallel.states import read_weights
from kd_lightning.reliability.commit import require_whole
from kd_lightning.reliability.resume import Start, find
from kd_lightning.types import Signal

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule


class KDTrainer(Trainer):
    """A Trainer that also caches a teacher, evaluates side by side and exports."""

    start = Start()
    """Where the run begins; the command line says so."""
    planned: Any = None
    """The configuration's `trainer`, where this one stands in for it (doctor)."""

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        resume: str = "never",
    ) -> None:
        """Train.

        Args:
            model: the distiller.
            train_dataloaders: batches for training, in place of a data module's.
            val_dataloaders: batches for validation, in place of a data module's.
            datamodule: the data.
            ckpt_path: a checkpoint to go on from, unseen; --resume looks at the run first.
            weights_only: nothing but true: checkpoints are tensors and plain data.
            resume: auto goes on from the newest whole checkpoint of the run's folder (or begins
                there), if the configuration is still the run's; a path from that checkpoint; force
                accepts a changed configuration; never begins in a new folder.
        """
        if resume != "never" and ckpt_path is None and self.start == Start():
            self.start = find(resume, Path(self.default_root_dir), None)
            ckpt_path = self.start.checkpoint
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def doctor(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        gpus: int | None = None,
        memory: str | None = None,
    ) -> None:
        """Is this run going to work? Exit code 1 if it would fail; warnings leave it at 0.

        Args:
            model: the distiller.
            datamodule: the rows.
            gpus: how many GPUs the run will have; None: as configured.
            memory: of one of them, for example 80GB or 141GiB; None: of those that are here.
        """
        from kd_lightning.doctor.examine import examine
        from kd_lightning.doctor.machine import Machine
        from kd_lightning.doctor.patient import Patient

        self.connected(model, datamodule)
        machine = Machine.of(self.planned or self, gpus, memory)
        data: Any = datamodule
        if examine(Patient(model, data, self, machine)).problems:
            raise SystemExit(1)

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

    def cache(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        kind: Literal["topk", "sampled", "hidden"] = "topk",
        k: int = 64,
        draws: int = 64,
        proposal: float = 1.0,
        temperatures: list[float] | None = None,
        dtype: Literal["auto", "float16", "float32", "bfloat16", "int8"] = "auto",
        splits: list[Literal["train", "validation", "test"]] | None = None,
        output: str | None = None,
        batch_tokens: int = 8192,
        shard_megabytes: float = 256.0,
        seed: int = 0,
    ) -> None:
        """What the teacher says of every row, written once, for `CachedTeacher` to read.

        The same command goes on where it was interrupted, and repairs damaged files.

        Args:
            model: the distiller; only its teacher is loaded.
            datamodule: the rows.
            kind: topk (k ids, the mass of the rest exactly), sampled (drawn ids, unbiased, for
                losses such as ForwardKL) or hidden (all probabilities, by states and head).
            k: topk: ids kept of each token.
            draws: sampled: ids drawn for each token, with replacement (arXiv 2503.16870).
            proposal: sampled: drawn from p to this power [t], weighted accordingly; 1: from p.
            temperatures: of the losses that will read it; None: 1 and 2 (sampled: 1, a single one).
            dtype: topk: float16 or float32; hidden: bfloat16, int8 or float32; auto: the first.
            splits: None: all three (rows that are in several are stored once).
            output: the folder to write; None: `cache` in the run's folder.
            batch_tokens: padded tokens of one forward of the teacher.
            shard_megabytes: size of a file: at most so much work is lost when it is interrupted.
            seed: sampled: of the draws.
        """
        from kd_lightning.cache.make import Wish, make, summary
        from kd_lightning.evaluation.card import described

        teacher = model.teacher
        if teacher is None or Signal.LOGITS not in teacher.offers:
            raise KDError("cache needs a teacher that gives logits: write model.teacher")
        model.answering.rights()
        data = self.joined(model, datamodule)
        chosen = splits or ["train", "validation", "test"]
        if data.streaming:
            raise KDError("streamed rows are not known beforehand: write --data.streaming=false")
        data.prepare_data()
        for split in chosen:
            data.setup({"train": "fit", "validation": "validate"}.get(split, "test"))
        device = self.strategy.root_device
        if teacher.tokenizer is not None:
            vocabulary.check_same(model.tokenizer, teacher.tokenizer)
        teacher.materialize(device)
        wish = Wish(
            kind, k, draws, proposal, temperatures, dtype, seed, batch_tokens, shard_megabytes
        )
        folder = Path(output) if output else Path(self.default_root_dir) / "cache"
        told = described(teacher)
        written = make(teacher, told, data, chosen, wish, folder, device, rank_zero_info)
        rank_zero_info(summary(written, folder))

    def prepare(
        self,
        model: Distiller,
        datamodule: LightningDataModule,
        ckpt_path: str | None,
        split: str | None,
    ) -> KDDataModule:
        """Build student, teacher and data in this process, outside any loop."""
        data = self.joined(model, datamodule)
        if split is not None:
            data.setup({"train": "fit", "validation": "validate"}.get(split, "test"))
        model.configure_model()
        if ckpt_path is not None:
            load_weights(model, Path(ckpt_path))
        model.to(self.strategy.root_device)
        return data

    def joined(self, model: Distiller, datamodule: LightningDataModule) -> KDDataModule:
        """Module and data with this trainer, in this process, outside any loop."""
        from kd_lightning.data.base import KDDataModule

        assert isinstance(datamodule, KDDataModule)
        if self.world_size > 1:
            raise KDError(
                "cache, evaluate and export run in one process: write --trainer.devices=1"
            )
        self.connected(model, datamodule)
        datamodule.tokenizer = model.tokenizer
        return datamodule

    def connected(self, model: Distiller, datamodule: LightningDataModule) -> None:
        """Each of them knows the others."""
        self.strategy.connect(model)
        model.trainer = self
        datamodule.trainer = self
        self.datamodule = datamodule


def load_weights(model: Distiller, checkpoint: Path) -> None:
    """The student's weights (and the loss's state) out of a checkpoint, file or folder."""
    if not checkpoint.exists():
        raise KDError(f"there is no checkpoint {checkpoint}")
    try:
        read_weights(require_whole(checkpoint), model)
    except RuntimeError as error:
        raise KDError(
            f"the checkpoint {checkpoint} is of another student or loss than the configuration: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
