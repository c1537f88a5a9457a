"""The memory of real steps on a processor, in a process of its own: run as a script.

Prints what was counted tensor by tensor, what the operating system saw, and what was estimated
beforehand without any contents.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kd_lightning.distiller import Distiller
from kd_lightning.doctor.counting import Meter
from kd_lightning.doctor.machine import Machine
from kd_lightning.doctor.memory import Estimate, Shape, estimate, full_batch
from kd_lightning.losses import ForwardKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch
from tests.steps import trainer
from tests.tiny import config


class Full(LightningDataModule):
    """The dearest batch, three times."""

    skills = ("all",)

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([self.batch] * 3, batch_size=None)


def distiller(teacher: str, **spec: Any) -> Distiller:
    width, vocab = spec.pop("width", 16), spec.pop("vocab", 90)
    if "path" not in spec:
        spec["config"] = config(width, 4, vocab_size=vocab, max_position_embeddings=2048)
    return Distiller(
        StudentSpec(tokenizer=teacher, **spec),
        ForwardKL(),
        LocalTeacher(teacher),
        micro_batch_rows=spec.pop("micro_batch_rows", None),
        gradient_clip_norm=1.0,
    )


def estimated(teacher: str, rows: int, columns: int, **spec: Any) -> Estimate:
    return estimate(distiller(teacher, **spec), Shape(rows, columns), Machine())


def counted(teacher: str, rows: int, columns: int, folder: str, **spec: Any) -> int:
    """The most that the tensors of a whole `fit` take."""
    model = distiller(teacher, **spec)
    batch = full_batch(Shape(rows, columns), 80, rows * columns)
    meter = Meter()
    with meter:
        trainer(folder, max_steps=3).fit(model, Full(batch))
    return meter.most


def resident(teacher: str, rows: int, columns: int, folder: str, **spec: Any) -> int:
    """What the process grew by at most, from the moment before anything was built."""
    torch.ones(8).sum()
    trainer(folder, max_steps=1).fit(distiller(teacher), Full(full_batch(Shape(2, 8), 80, 16)))
    before = now()
    model = distiller(teacher, **spec)
    batch = full_batch(Shape(rows, columns), 80, rows * columns)
    trainer(folder, max_steps=3).fit(model, Full(batch))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(teacher: str, folder: str) -> None:
    torch.set_num_threads(1)
    big: dict[str, Any] = {"rows": 8, "columns": 512, "width": 256, "vocab": 4000}
    grown = resident(teacher, folder=folder, **big)
    print(json.dumps({"resident": grown, "estimated": estimated(teacher, **big).total}))


if __name__ == "__main__":
    main(*sys.argv[1:])
