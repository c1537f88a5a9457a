"""Two optimizer steps, a checkpoint between them, and the second step once more from it."""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kd_lightning.doctor.drawn import drawn_here
from kd_lightning.doctor.patient import Patient
from kd_lightning.errors import KDError
from kd_lightning.types import Batch

if TYPE_CHECKING:
    from kd_lightning.distiller import Distiller

QUIET = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero",
         "lightning.fabric.utilities.rank_zero")  # fmt: skip


@dataclass
class Trial:
    """What two steps showed."""

    losses: list[float] = field(default_factory=list)
    """On the same batch, before the first and before the second step."""
    norms: list[float] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    """Trained weights without a gradient in the first step."""
    trained: int = 0
    """Trained weights (tensors)."""
    changed: int = 0
    """Of these, how many were other after two steps."""
    seconds: float = 0.0
    """Of the second step."""
    rows: int = 0
    checkpoint: int = 0
    """Its bytes."""
    equal: bool = True
    """Whether the second step from the checkpoint ends at the same weights."""
    furthest: float = 0.0
    """The largest difference between the two."""


class Watch(Callback):
    """Looks at the steps, saves after the first, stops after the second."""

    def __init__(self, save: Path | None) -> None:
        """`save`: where; None: this is the second step from the checkpoint."""
        self.save = save
        self.trial = Trial()
        self._began = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(trainer.global_step)  # dropout: the same before and after the checkpoint
        self._began = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if trainer.global_step == 0:
            named = [(n, p) for n, p in pl_module.named_parameters() if p.requires_grad]
            self.trial.trained = len(named)
            self.trial.unreached = [name for name, p in named if p.grad is None]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trial.seconds = time.monotonic() - self._began
        self.trial.losses.append(float(trainer.callback_metrics["train/loss"]))
        if trainer.global_step == 1 and self.save is not None:
            trainer.save_checkpoint(self.save)
        if trainer.global_step >= 2:
            trainer.should_stop = True


class Judge:
    """Stands in for the run's guard: a step that is not finite ends the trial, and leaves no file.

    Its sentence says whether the step came before or after the weights moved.
    """

    def passes(
        self, trainer: Trainer, values: Mapping[str, Tensor], norm: Tensor, batch: Batch
    ) -> bool:
        """Raise unless all of it is finite."""
        told = [*(float(value) for value in values.values()), float(norm)]
        if all(math.isfinite(value) for value in told):
            return True
        terms = ", ".join(f"{name} {float(value):g}" for name, value in values.items())
        found = f"loss {terms}, gradient norm {float(norm):g}"
        if trainer.global_step == 0:
            raise KDError(
                f"the first step is not finite ({found}): look at the findings on student and "
                f"teacher, and at the rows {', '.join(batch.ids[:4])}"
            )
        raise KDError(
            f"after one step nothing is finite any more ({found}): lower the learning rate "
            "(model.optimizer.init_args.lr), or give it a warm-up"
        )


class Again(Dataset[Batch]):
    """The same batch, as often as an epoch has steps."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class Rows(LightningDataModule):
    """The batch with the names of its skills."""

    def __init__(self, batch: Batch, steps: int, skills: tuple[str, ...]) -> None:
        super().__init__()
        self.batch, self.steps, self.skills = batch, steps, skills

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Again(self.batch, self.steps), batch_size=None)


def attempt(patient: Patient, folder: Path) -> Trial:
    """Train for two steps as configured, but on this device and in `folder`."""
    first = begin(patient)
    before = weights(first)
    watch = Watch(folder / "step.ckpt")
    run(patient, first, watch, folder)
    trial = watch.trial
    after = weights(first)
    trial.rows = len(patient.batch)
    trial.changed = sum(not torch.equal(before[name], after[name]) for name in before)
    trial.checkpoint = size_of(folder / "step.ckpt")
    second = begin(patient)
    second.student = copy.deepcopy(first.student)
    del first
    with torch.no_grad():
        for parameter in second.student.parameters():
            parameter.mul_(
                not parameter.requires_grad
            )  # so that nothing is right but what was read
    run(patient, second, Watch(None), folder, folder / "step.ckpt")
    again = weights(second)
    trial.equal = all(torch.equal(after[name], again[name]) for name in after)
    trial.furthest = max(
        (float((after[name] - again[name]).abs().max()) for name in after if after[name].numel()),
        default=0.0,
    )
    return trial


def begin(patient: Patient) -> Distiller:
    """A fresh distiller with the patient's student, and its teacher as it is."""
    teacher = patient.distiller.teacher
    if teacher is not None and patient.asked:
        patient.teacher  # noqa: B018 (loads it)
    memo: dict[int, Any] = {} if teacher is None else {id(teacher): teacher}
    tokenizer = patient.tokenizer
    memo[id(tokenizer)] = tokenizer
    fresh = copy.deepcopy(patient.distiller, memo)
    fresh.guard = Judge()  # type: ignore[assignment]
    drawn_here(fresh.answering.rollout)
    fresh.student = patient.student  # so configure_model finds it in place, and does no more
    fresh.answering.check(fresh.loss, patient.data)
    fresh.answering.begin(fresh.student, patient.device)
    return fresh


def run(
    patient: Patient,
    distiller: Distiller,
    watch: Watch,
    folder: Path,
    start: Path | None = None,
) -> None:
    """Fit until the watch stops it; the schedule is that of the whole run."""
    told = patient.trainer
    sample = patient.sample
    rows = patient.data.batch_size * patient.machine.ranks
    steps = max(2, -(-sample.rows // rows))
    data = Rows(patient.batch.to("cpu"), steps, patient.data.skills)
    with silence():
        trainer = type(told)(
            accelerator="cpu" if patient.device.type == "cpu" else "gpu",
            devices=1,
            precision=told.precision,
            max_steps=told.max_steps,
            max_epochs=told.max_epochs,
            log_every_n_steps=1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(distiller, datamodule=data, ckpt_path=start, weights_only=True)


def weights(distiller: Distiller) -> dict[str, Tensor]:
    """Copies of what is trained."""
    named = distiller.named_parameters()
    return {n: p.detach().cpu().clone() for n, p in named if p.requires_grad}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


@contextmanager
def silence() -> Iterator[None]:
    """Without Lightning's lines on devices and on how it stopped."""
    before = {name: logging.getLogger(name).level for name in QUIET}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
