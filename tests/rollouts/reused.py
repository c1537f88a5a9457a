"""PPO on a made reward, by how many updates each batch of answers gives."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kd_lightning.distiller import Distiller
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rewards.base import Asked, Reward
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.reuse import Reuse
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch
from tests.parallel.runs import trainer
from tests.rollouts import kit, runs

DRAWINGS = 16
PROMPTS = 8
ANSWERS = 16


class Letters(Reward):
    """The share of an answer's signs that are small letters, or a number that says nothing."""

    def __init__(self, noise: int | None = None) -> None:
        super().__init__()
        self.noise = None if noise is None else random.Random(noise)
        self.true: list[float] = []
        """The true reward of each batch of answers."""

    def scores(self, batch: Batch, asked: list[Asked]) -> list[float]:  # type: ignore[override]
        found = [sum("a" <= x <= "z" for x in a.answer) / 10 for a in asked]
        self.true.append(sum(found) / len(found))
        return found if self.noise is None else [self.noise.random() for _ in found]


class Prompts(LightningDataModule):
    """The same few prompts at every step."""

    skills = ("",)

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = kit.batch(kit.examples(PROMPTS))
        return DataLoader([rows] * self.steps, batch_size=None)  # type: ignore[arg-type]


def rewards(
    teacher: str, folder: Path, epochs: int, seed: int, noise: bool = False, rate: float = 1e-3
) -> list[float]:
    """The true reward of each batch of drawn answers; each gives `epochs` updates."""
    reward = Letters(seed if noise else None)
    torch.manual_seed(seed)
    module = Distiller(
        StudentSpec(path=teacher),
        runs.ppo(32),
        LocalTeacher(teacher),
        rollout=Reuse(FromStudent(n=ANSWERS, sampling=kit.SHORT), epochs),
        reward=reward,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0),
    )
    steps = (DRAWINGS - 1) * epochs + 1
    trainer(folder, steps).fit(module, Prompts(steps))
    return reward.true
