"""A tiny student of a mixture: labels and rationales as two tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from kd_lightning import losses
from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.distiller import Distiller
from kd_lightning.losses.weighted import Term
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.trainer import KDTrainer
from tests.conftest import ROOT
from tests.data import kit
from tests.recipes.kit import TEMPLATE, Learner, Row
from tests.tiny import config, tokenizer

WEIGHTS = yaml.safe_load(
    (ROOT / "configs/method/distilling_step_by_step.yaml").read_text(encoding="utf-8")
)["model"]["loss"]["init_args"]["terms"]
SYSTEM = {
    name: part["data"]["init_args"]["system"]
    for name, part in yaml.safe_load(
        (ROOT / "configs/data/skill/label_and_rationale.yaml").read_text(encoding="utf-8")
    )["init_args"]["parts"].items()
}


def terms(names: Sequence[str]) -> losses.Loss:
    """The method's loss, with the weights of its configuration."""
    made = {
        name: Term(losses.OnSkill(losses.CrossEntropy(), name), WEIGHTS[name]["weight"])
        for name in names
    }
    return losses.Weighted(made)


def learn_tasks(
    folder: Path,
    tasks: dict[str, Sequence[Row]],
    seed: int,
    steps: int,
    batch: int = 32,
    width: int = 64,
    rate: float = 4e-3,
) -> Learner:
    """Train on rows by task, each under its system prompt; `batch` rows of each task in a step."""
    folder.mkdir(parents=True, exist_ok=True)
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    tok.save_pretrained(folder / "tokenizer")
    parts = {}
    for name, rows in tasks.items():
        path = kit.write(folder / f"{name}.jsonl", [dict(row) for row in rows])
        held = kit.write(folder / f"{name}-held.jsonl", [dict(row) for row in rows[:4]])
        data = InstructionFollowing(path, validation=held, system=SYSTEM[name], max_length=256)
        parts[name] = Part(data)
    mixture = Mixture(parts, batch_size=batch * len(parts), seed=seed)
    torch.manual_seed(seed)
    fields = config(width=width, layers=2, initializer_range=0.1)
    module = Distiller(
        StudentSpec(config=fields, tokenizer=str(folder / "tokenizer")),
        terms(list(tasks)),
        None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=0.1),
        gradient_clip_norm=1.0,
    )
    trainer = KDTrainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, callbacks=[],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, default_root_dir=folder, use_distributed_sampler=False,
        log_every_n_steps=10_000,
    )  # fmt: skip
    trainer.fit(module, datamodule=mixture)
    return Learner(module.student.eval(), parts["label"].data)
