"""Whole steps on made rows, in one process or two: losses, gradients, what was said.

torchrun --nproc_per_node=2 -m tests.rollouts.runs TEACHER FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

import kd_lightning.losses as losses
from kd_lightning.distiller import Distiller
from kd_lightning.losses.advantages import GAE, RLOO
from kd_lightning.losses.base import Loss
from kd_lightning.losses.surrogates import ClippedRatio
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.losses.weighted import Term
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rewards.base import Asked, Reward
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.beside import Beside
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.replay import Replay
from kd_lightning.rollouts.reuse import Reuse
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.types import Batch
from tests.parallel.runs import Losses, strategy, trainer
from tests.rollouts import kit
from tests.tiny import config

ROWS = 6
STEPS = 4


class Vowels(Reward):
    """How many of an answer's signs are vowels; row 2 of the first step nobody can judge."""

    def scores(self, batch: Batch, asked: list[Asked]) -> list[float]:  # type: ignore[override]
        return [
            float("nan") if a.example.id == "0-2" else float(sum(x in "aeiou" for x in a.answer))
            for a in asked
        ]


class Rows(LightningDataModule):
    """Other rows at each step, shared out among the ranks in turn."""

    skills = ("",)

    def batches(self) -> list[Batch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        made = []
        for step in range(STEPS):
            named = [
                kit.Example.dialogue(id=f"{step}-{i}", user="ab" * (i % 3 + 1), assistant="cde")
                for i in range(ROWS)
            ]
            mine = named[rank::world]
            made.append(kit.batch(mine, fillers=-(-ROWS // world) - len(mine)))
        return made

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches(), batch_size=None)  # type: ignore[arg-type]


def reinforced() -> Loss:
    return losses.Weighted(
        {
            "reward": Term(losses.PolicyGradient(RLOO()), 0.5),
            "divergence": Term(losses.JensenShannon(), 0.5),
        }
    )


def ppo(width: int = 16) -> Loss:
    return losses.PolicyGradient(
        GAE(), ClippedRatio(), reward_kl=0.05, value=ValueHead(width), reward_policy="drawn"
    )


CASES: dict[str, tuple[Any, Any, Any]] = {
    "gkd": (losses.JensenShannon, lambda: Mixed(0.5, FromStudent(sampling=kit.SHORT)), None),
    "replay": (
        losses.ReverseKL, lambda: Replay(FromStudent(sampling=kit.SHORT), reuse=0.5), None
    ),
    "judged": (reinforced, lambda: FromStudent(n=3, sampling=kit.SHORT), Vowels),
    "ppo": (ppo, lambda: Reuse(FromStudent(n=2, sampling=kit.SHORT), 2, 2), Vowels),
    "contrast": (
        lambda: losses.ContrastiveSkew(0.5),
        lambda: Beside([FromData(), FromStudent(sampling=kit.SHORT)]),
        None,
    ),
    "average": (losses.ReverseKL, lambda: FromStudent(sampling=kit.SHORT), None),
}  # fmt: skip


def run(teacher: str, folder: Path, case: str, devices: int = 1, **more: Any) -> dict[str, Any]:
    """Losses and gradient norms of a few steps, and the answers of this rank."""
    make_loss, make_rollout, make_reward = CASES[case]
    how = more.pop("strategy", "ddp" if devices > 1 else "auto")
    told: Teacher = MovingAverage(0.5) if case == "average" else LocalTeacher(teacher)
    torch.manual_seed(3)
    rollout: Rollout = make_rollout()
    module = Distiller(
        StudentSpec(config=config(initializer_range=0.3), tokenizer=teacher),
        make_loss(),
        told,
        rollout=rollout,
        reward=None if make_reward is None else make_reward(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        **more,
    )
    seen, said = Losses(module), []
    original = module.answering.rollout.__call__

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(rollout, name)

        def __call__(self, *args: Any) -> Batch:
            made: Batch = original(*args)
            said.append(kit.texts(made))
            return made

    module.answering.rollout = Listening()  # type: ignore[assignment]
    fit = trainer(folder, STEPS, devices=devices, strategy=strategy(how))
    fit.fit(module, Rows())
    return {"losses": seen.values, "norms": seen.norms, "said": said}


def main(teacher: str, folder: str) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    chosen = sys.argv[3:] or CASES
    found = {case: run(teacher, Path(folder), case, devices=2) for case in chosen}
    found["gkd-fsdp"] = run(teacher, Path(folder), "gkd", devices=2, strategy="fsdp")
    Path(folder, f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3])
