"""A healthy run of the demo pair, and ways to make it ill."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from kd_lightning.data.skills import InstructionFollowing
from kd_lightning.distiller import Distiller
from kd_lightning.doctor.examine import CHECKS, examine, make
from kd_lightning.doctor.findings import Checked, Level
from kd_lightning.doctor.machine import Machine
from kd_lightning.doctor.patient import Patient
from kd_lightning.doctor.report import Report
from kd_lightning.losses import ForwardKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.trainer import KDTrainer
from tests.tiny import config

WORDS = ["fagudu", "eteji", "moralip", "tavo", "sunek", "bilafo", "dorime", "kesuna"]
ROWS = [{"instruction": f"Reverse {word}.", "output": word[::-1]} for word in WORDS]


def rows_file(folder: Path, rows: list[Any] | None = None) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path


def adamw(lr: float = 0.003) -> Any:
    import torch

    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def patient(folder: Path, **changes: Any) -> Patient:
    """The demo teacher, a new student, eight rows in a file; each part may be replaced."""
    spec = {"config": config(max_position_embeddings=256), "tokenizer": "demo"}
    student = changes.pop("student", None) or StudentSpec(**{**spec, **changes.pop("spec", {})})
    model = Distiller(
        student,
        changes.pop("loss", None) or ForwardKL(),
        changes.pop("teacher", None) or LocalTeacher("demo", dtype="float32"),
        rollout=changes.pop("rollout", None),
        reward=changes.pop("reward", None),
        optimizer=adamw(changes.pop("lr", 0.003)),
        gradient_clip_norm=1.0,
    )
    callbacks = changes.pop("callbacks", [])
    trainer = KDTrainer(
        accelerator="cpu",
        devices=1,
        max_steps=50,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=changes.pop("run", folder / "run"),
    )
    machine = changes.pop("machine", None) or Machine(memory=2**34)
    path = changes.pop("path", None) or rows_file(folder)
    settings = {"validation_share": 0.25, "batch_size": 4, "max_length": 128}
    data = InstructionFollowing(str(path), **{**settings, **changes})
    trainer.connected(model, data)
    return Patient(model, data, trainer, machine)


def looked_at(found: Patient, *names: str) -> dict[str, Checked]:
    """What these checks find (all of them where none is named)."""
    return {n: make(n, CHECKS[n], found) for n in names or CHECKS}


def report(found: Patient, **console: Any) -> tuple[Report, str]:
    """All of it, and what was printed."""
    out = io.StringIO()
    made = examine(found, Console(file=out, width=100, **console))
    return made, out.getvalue()


def said(checked: Checked, level: Level) -> str:
    return " | ".join(f.text for f in checked.findings if f.level is level)
