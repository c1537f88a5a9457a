"""Short runs with everything that they leave behind, the same in one process and in many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

import kd_lightning.losses as losses
from kd_lightning.data.skills.demo import Demo
from kd_lightning.distiller import Distiller
from kd_lightning.losses.weighted import Term
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.parallel.sharding import Sharding
from kd_lightning.parallel.strategy import KDStrategy
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.trainer import KDTrainer
from kd_lightning.types import IGNORE, Batch
from tests.tiny import config

STEPS = 20
ROWS = 8


def global_batch(step: int) -> Batch:
    """Eight rows of different lengths, other ones at each step."""
    draw = torch.Generator().manual_seed(100 + step)
    width = 14
    ids = torch.randint(4, 80, (ROWS, width), generator=draw)
    lengths = torch.randint(5, width + 1, (ROWS,), generator=draw)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = ids * mask
    learned = torch.zeros_like(mask).bool()
    learned[:, 2:] = True
    learned[:, :-1] &= mask[:, 1:].bool()
    learned[:, -1] = False
    targets = torch.where(learned, ids.roll(-1, 1), IGNORE)
    weights = learned.float()
    zeros = torch.zeros(ROWS, dtype=torch.long)
    names = tuple(f"{step}-{i}" for i in range(ROWS))
    return Batch(ids, mask, targets, weights, zeros, zeros, names)


class Batches(LightningDataModule):
    """Each rank its share of every global batch."""

    skills = ("all",)

    def __init__(self, first: int = 0, steps: int = STEPS) -> None:
        super().__init__()
        self.first = first
        self.steps = steps

    def train_dataloader(self) -> DataLoader[Batch]:
        share = ROWS // self.trainer.world_size
        start = share * self.trainer.global_rank
        # more than a run reads, so that no epoch ends: where a checkpoint stands is told by `first`
        chosen = range(self.first, 2 * self.first + self.steps + 2)
        rows = [global_batch(step).rows(start, start + share) for step in chosen]
        return DataLoader(rows, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.train_dataloader()


CASES: dict[str, dict[str, Any]] = {
    "sft": {"loss": "CrossEntropy"},
    "kl": {"loss": "ForwardKL"},
    "kl_accumulated": {"loss": "ForwardKL", "micro_batch_rows": 2},
    "kl_clipped": {"loss": "ForwardKL", "gradient_clip_norm": 0.05},
    "kl_tied": {"loss": "ForwardKL", "tied": True},
    "own": {"loss": "both", "lora": LoraSpec(rank=4, targets=["q_proj", "lm_head"])},
    "lora": {"loss": "JensenShannon", "lora": LoraSpec(rank=4), "path": "other"},
}


def both() -> losses.Loss:
    """Words and teacher."""
    terms = {"ce": Term(losses.CrossEntropy(), 0.5), "kl": Term(losses.ForwardKL(), 0.5)}
    return losses.Weighted(terms)


def distiller(teacher: str, loss: str, tied: bool = False, **more: Any) -> Distiller:
    """A small student; with adapters it starts from the teacher's own folder,
    or from the one beside it called `path`."""
    lora, checkpointing = more.pop("lora", None), more.pop("gradient_checkpointing", False)
    told = more.pop("told", None) or LocalTeacher(teacher)
    path = more.pop("path", None)
    if lora is not None:
        start = teacher if path is None else str(Path(teacher).with_name(path))
        spec = StudentSpec(path=start, lora=lora, gradient_checkpointing=checkpointing)
    else:
        fields = config(initializer_range=0.3, tie_word_embeddings=tied)
        spec = StudentSpec(
            config=fields, tokenizer=teacher, gradient_checkpointing=checkpointing,
            compile=more.pop("compile", False),
        )  # fmt: skip
    torch.manual_seed(3)
    return Distiller(
        spec,
        both() if loss == "both" else getattr(losses, loss)(),
        told,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        **more,
    )


class Losses:
    """What every step logs."""

    def __init__(self, model: Distiller) -> None:
        self.values: list[float] = []
        self.norms: list[float] = []
        self._log = model.log_step
        model.log_step = self.keep  # type: ignore[method-assign]

    def keep(self, values: Any, norm: Any, *others: Any) -> None:
        self.values.append(float(sum(values.values())))
        self.norms.append(float(norm))
        self._log(values, norm, *others)


def trainer(folder: Path, steps: int = STEPS, **more: Any) -> KDTrainer:
    return KDTrainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **more,
    )


def strategy(name: str) -> Any:
    """`fsdp`, `fsdp_file`, `hsdp` ... or what Lightning knows."""
    known: dict[str, dict[str, Any]] = {
        "fsdp": {},
        "fsdp_file": {"save_distributed_checkpoint": False},
        "fsdp_kept": {"student": Sharding(reshard_after_forward=False)},
        "fsdp_last": {"gradient_exchange": "last"},
        "fsdp_offload": {
            "student": Sharding(cpu_offload=True),
            "teacher": Sharding(cpu_offload=True),
        },
        "hsdp": {"replicas": 2},
    }
    return KDStrategy(**known[name]) if name in known else name


def run(
    teacher: str, folder: Path, case: str, how: str, devices: int = 1, steps: int = STEPS,
    first: int = 0, start: str | None = None, save: str | None = None, precision: Any = None,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run: losses, gradient norms, what its checkpoint weighs."""
    model = distiller(teacher, **{**CASES[case], **more})
    seen = Losses(model)
    how_precise = {"precision": precision} if precision else {}
    fit = trainer(folder, first + steps, devices=devices, strategy=strategy(how), **how_precise)
    fit.fit(model, Batches(first, steps), ckpt_path=start)
    if save is not None:
        fit.save_checkpoint(save)
    return {"losses": seen.values, "norms": seen.norms, "trainer": fit, "model": model}


DEMO_ROWS = 8
"""Rows of a global batch of `demo_run`."""


class SaveAt(Callback):
    """A checkpoint in the middle of a run."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def demo_run(
    folder: Path, start: Path | None = None, save: Path | None = None, how: str = "fsdp"
) -> dict[str, Any]:
    """Eight steps over two epochs of real rows, in global batches of 8 whatever the processes.

    Returns losses, and the rows of each global batch. `save`: written after the third step.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(3)
    fields = config(initializer_range=0.3, max_position_embeddings=512)
    model = Distiller(
        StudentSpec(config=fields, tokenizer="demo"),
        losses.ForwardKL(),
        LocalTeacher("demo"),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    seen, rows = Losses(model), []
    split = model.micro_batches
    model.micro_batches = lambda batch: (rows.append(batch.ids), split(batch))[1]  # type: ignore
    data = Demo(train_rows=40, batch_size=DEMO_ROWS // world, num_workers=0)
    more = {} if save is None else {"callbacks": [SaveAt(3, save)]}
    fit = trainer(folder, 8, devices=world, strategy=strategy(how), **more)
    fit.fit(model, data, ckpt_path=None if start is None else str(start))
    if world > 1:
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, rows)
        rows = [sum(step, ()) for step in zip(*parts, strict=True)]
    return {"losses": seen.values, "rows": [sorted(step) for step in rows]}
