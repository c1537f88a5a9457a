"""Students that a vLLM for processors can serve: heads of 32, a head of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger

import kd_lightning.losses as losses
from kd_lightning.distiller import Distiller
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts.base import Rollout
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch
from tests.parallel.runs import Losses, trainer
from tests.rollouts import kit, runs
from tests.tiny import save_model

OTHER_END = 12
"""A second token that ends answers, by the generation settings alone."""


def save(folder: Path, seed: int, tied: bool = False) -> str:
    """A random student whose answers end by either of two tokens."""
    save_model(
        folder, width=64, layers=2, seed=seed, head_dim=32, tie_word_embeddings=tied
    )  # fmt: skip
    file = folder / "generation_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "eos_token_id": [2, OTHER_END]}))
    return str(folder)


def roll(rollout: Rollout, rows: Batch, folder: str, seed: int = 5) -> Batch:
    """The answers of the student in a folder, as a step would learn from them."""
    made = rollout(rows, kit.model(folder, double=False), None, kit.NOW, seed)
    return rollout.settle(made, lambda batch: batch)


def fit(
    teacher: str, folder: Path, rollout: Rollout, *callbacks: Any, steps: int = 3, **more: Any
) -> tuple[list[dict[str, list[tuple[int, ...]]]], list[float], Any]:
    """What each step said, its losses, and the run."""
    torch.manual_seed(3)
    spec = more.pop("spec", None) or StudentSpec(path=kit.folders()[0])
    module = Distiller(
        spec, losses.ReverseKL(), LocalTeacher(teacher), rollout=rollout,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )  # fmt: skip
    seen, said = Losses(module), []
    settle = rollout.settle

    def heard(made: Batch, fix: Any) -> Batch:
        said.append(kit.texts(made))
        return settle(made, fix)

    rollout.settle = heard  # type: ignore[method-assign]
    run = trainer(folder, steps, callbacks=list(callbacks))
    run.loggers = [CSVLogger(folder, flush_logs_every_n_steps=1)]
    run.fit(module, runs.Rows())
    return said, seen.values, run


def column(folder: Path, name: str) -> list[float]:
    """What a run's file of metrics tells under a name, in order."""
    lines = [line.split(",") for line in next(folder.rglob("metrics.csv")).read_text().split()]
    place = lines[0].index(name)
    return [float(line[place]) for line in lines[1:] if line[place]]
