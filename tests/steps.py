"""One optimizer step, however it is split: run as a script under torchrun, or called in a test.

The optimizer is plain gradient descent with learning rate 1, so that the change of the weights is
the gradient.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from kd_lightning.distiller import Distiller
from kd_lightning.losses import chunks
from kd_lightning.losses.answers import AnswerLoss
from kd_lightning.losses.base import Loss
from kd_lightning.losses.reward_weighted import RewardWeighted
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import IGNORE, Batch, Example, Source
from tests.tiny import config

ROWS = 4


def global_batch() -> Batch:
    """Four rows of different lengths; one all masked, one of the student's own words."""
    torch.manual_seed(7)
    lengths = [9, 5, 7, 12]
    width = max(lengths)
    ids = torch.randint(4, 80, (ROWS, width))
    mask = torch.zeros(ROWS, width, dtype=torch.long)
    targets = torch.full((ROWS, width), IGNORE)
    weights = torch.zeros(ROWS, width)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        ids[row, length:] = 0
        if row != 1:  # nothing to learn in row 1
            targets[row, 2 : length - 1] = ids[row, 3:length]
            weights[row, 2 : length - 1] = 1.0
    weights[0, 3] = 2.5
    source = torch.tensor([Source.GOLD, Source.GOLD, Source.STUDENT, Source.TEACHER])
    skill = torch.zeros(ROWS, dtype=torch.long)
    names = tuple(f"row-{i}" for i in range(ROWS))
    skills = ("label", "label", "rationale", "label")
    rows = tuple(Example(n, (), skill=s, plain=True) for n, s in zip(names, skills, strict=True))
    return Batch(ids, mask, targets, weights, source, skill, names, rows)


def judged_batch() -> Batch:
    """The same rows as two groups of answers with rewards; a rank has whole groups."""
    known = {"group": torch.tensor([0, 0, 1, 1]), "reward": torch.tensor([0.5, 1.0, -0.25, 2.0])}
    return global_batch().replace(**known)


class Steps(LightningDataModule):
    """The global batch, each rank its share, again and again."""

    skills = ("all",)

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps

    def train_dataloader(self) -> DataLoader[Batch]:
        share = ROWS // self.trainer.world_size
        start = share * self.trainer.global_rank
        parts = self.trainer.lightning_module.loss.modules()
        judged = any(isinstance(part, AnswerLoss | RewardWeighted) for part in parts)
        mine = (judged_batch() if judged else global_batch()).rows(start, start + share)
        return DataLoader([mine] * self.steps, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.train_dataloader()


def named_losses() -> dict[str, Loss]:
    """Every loss: from its defaults, or as the kit makes it."""
    import kd_lightning.losses as losses
    from tests.losses.kit import ARGUMENTS

    kinds = {name: getattr(losses, name) for name in losses.__all__}
    return {name: ARGUMENTS.get(kind, kind)() for name, kind in kinds.items()}


def distiller(teacher: str, loss: Loss, **more: Any) -> Distiller:
    torch.manual_seed(3)
    return Distiller(
        StudentSpec(config=config(initializer_range=0.3), tokenizer=teacher),
        loss,
        LocalTeacher(teacher),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        **more,
    )


def trainer(folder: str | Path, **more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=more.pop("max_steps", 1),
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=more.pop("checkpoint", False),
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **more,
    )


def step(teacher: str, loss: Loss, folder: str | Path, **more: Any) -> dict[str, Any]:
    """The step's loss and gradient (flat)."""
    how = {k: more.pop(k) for k in ("devices", "strategy") if k in more}
    model = distiller(teacher, loss, **more)
    fit = trainer(folder, **how)
    fit.strategy.connect(model)
    model.trainer = fit
    model.configure_model()
    model.student.double()
    model.teacher.model.double()
    before = torch.cat([p.detach().flatten().double() for p in model.student.parameters()])
    fit.fit(model, Steps())
    after = torch.cat([p.detach().flatten().double() for p in model.student.parameters()])
    return {
        "loss": float(fit.callback_metrics["train/loss"]),
        "gradient": (before - after).tolist(),
    }


def main(teacher: str, folder: str) -> None:
    torch.set_num_threads(1)
    chunks.CHUNK_BYTES = 4 * chunks.FUSED_TILES * 88 * 3  # three tokens a chunk
    found = {
        name: step(teacher, loss, folder, devices=2, strategy="ddp")
        for name, loss in named_losses().items()
    }
    if os.environ["RANK"] == "0":
        Path(folder, "steps.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
