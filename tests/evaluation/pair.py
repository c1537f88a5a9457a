"""A tiny teacher and student on tiny data, for everything that a user sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.data.skills.plain_text import PlainText
from kd_lightning.distiller import Distiller
from kd_lightning.losses import CrossEntropy, ForwardKL
from kd_lightning.losses.base import Loss
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers import LocalTeacher
from kd_lightning.types import Sampling
from tests.tiny import config


def conversations(folder: Path, count: int = 12, name: str = "rows") -> Path:
    """Prompts and answers of different lengths."""
    path = folder / f"{name}.jsonl"
    rows = [
        {"prompt": f"Say {name} {i}", "answer": "yes " * (1 + i % 3) + str(i)} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def instructions(folder: Path, name: str = "rows", **more: Any) -> InstructionFollowing:
    path = str(conversations(folder, name=name))
    settings = {"max_length": 128, "batch_size": 4, "validation_share": 0.5, **more}
    return InstructionFollowing(path, **settings)


def documents(folder: Path) -> PlainText:
    path = folder / "texts.jsonl"
    rows = [{"text": f"Once upon a time there were {i} cats."} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PlainText(str(path), max_length=64, batch_size=4, validation_share=0.5)


def mixture(folder: Path) -> Mixture:
    parts = {name: Part(instructions(folder, name)) for name in ("left", "right")}
    return Mixture(parts, batch_size=4)


def distiller(
    teacher: str | None, tokenizer: str, loss: Loss | None = None, **student: Any
) -> Distiller:
    spec = student or {"config": config(width=16, layers=2)}
    return Distiller(
        StudentSpec(**{"tokenizer": tokenizer, **spec}),
        loss or (ForwardKL() if teacher else CrossEntropy()),
        LocalTeacher(teacher) if teacher else None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        answers=Sampling(max_new_tokens=6),
    )


def trainer(folder: Path, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 4,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "logger": False,
        **more,
    }
    return Trainer(default_root_dir=folder, **settings)


def ready(module: Distiller, data: KDDataModule, stage: str = "validate") -> None:
    """Models and data in place, without a run."""
    from kd_lightning.models.causal import build_student

    torch.manual_seed(3)
    module.student = build_student(module.spec, module.tokenizer)
    if module.teacher is not None:
        module.teacher.materialize(torch.device("cpu"))
    data.tokenizer = module.tokenizer
    data.setup(stage)
