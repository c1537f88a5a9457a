"""What a victim is made of, and the faults that are put into it."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint import FileSystemWriter

import kd_lightning.losses as losses
from kd_lightning.distiller import Distiller
from kd_lightning.losses.advantages import GAE, GRPO
from kd_lightning.losses.penalties import K3
from kd_lightning.losses.surrogates import ClippedRatio
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.reliability import checkpoint_io, commit
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.rewards.reward_model import RewardModel
from kd_lightning.rewards.shaping import Length
from kd_lightning.rollouts.adaptive import OnValidation
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.replay import Replay
from kd_lightning.rollouts.reuse import Reuse
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.types import IGNORE, Sampling
from tests.data import kit
from tests.tiny import config

DROPOUT = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64,
    "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.0,
}  # fmt: skip


def distiller(variant: str, teacher: str) -> Distiller:
    """A run of this kind; gkd and rlaif with dropout and in micro-batches."""
    loss: dict[str, Any] = {
        "sft": losses.CrossEntropy,
        "dropout": losses.CrossEntropy,
        "taid": losses.TAID,
        "gkd": losses.JensenShannon,
        "rlaif": policy_gradient,
        "ppo": ppo,
    }
    rollout = {"on_policy": on_policy, "gkd": gkd, "rlaif": pairs, "ppo": reuse}
    fields = DROPOUT if variant in ("dropout", "gkd", "rlaif") else config(layers=1)
    return Distiller(
        StudentSpec(config=fields, tokenizer=teacher),
        loss.get(variant, losses.ForwardKL)(),
        MovingAverage(0.5) if variant == "on_policy" else LocalTeacher(teacher),
        rollout=rollout[variant]() if variant in rollout else None,
        reward={"rlaif": RewardModel(teacher), "ppo": Length(high=2)}.get(variant),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=0.2),
        micro_batch_rows=2 if variant in ("accumulate", "gkd", "rlaif") else None,
        gradient_clip_norm=1.0,
    )


DRAWN = Sampling(max_new_tokens=6, temperature=1.0)


def gkd() -> Mixed:
    """The student's own words in half of the rows."""
    return Mixed(0.5, FromStudent(sampling=DRAWN))


def pairs() -> FromStudent:
    """Two answers to each prompt, to be judged by the reward model."""
    return FromStudent(n=2, sampling=DRAWN)


def policy_gradient() -> losses.PolicyGradient:
    """GRPO by the reward model's numbers, held to the teacher."""
    return losses.PolicyGradient(GRPO(), ClippedRatio(), kl=K3())


def on_policy() -> Mixed:
    """Everything that a rollout can remember: a coin by validation, a buffer."""
    drawn = FromStudent(sampling=DRAWN)
    fraction = OnValidation(start=0.4, by=0.3, margin=-10.0)  # rises at every validation
    return Mixed(fraction, Replay(drawn, capacity=4, reuse=0.5))


def ppo() -> losses.PolicyGradient:
    """Weights of its own, and what it fixes of answers before their first step."""
    return losses.PolicyGradient(
        GAE(), ClippedRatio(), reward_kl=0.05, value=ValueHead(16), reward_policy="drawn"
    )


def reuse() -> Reuse:
    """Four steps for each batch of answers."""
    return Reuse(FromStudent(sampling=DRAWN), epochs=2, minibatches=2)


def data(folder: Path, rows: int = 21, workers: int = 0, batch: int = 3) -> kit.Echo:
    """Short rows that can be told apart."""
    train, held = folder / f"rows-{rows}.jsonl", folder / "held.jsonl"
    if not train.is_file():
        kit.numbers(train, rows)
        kit.numbers(held, 3)
    return kit.Echo(str(train), validation=str(held), batch_size=batch, seed=3, num_workers=workers)


class Trace(Callback):
    """Writes each step's rows and loss, and does what the job says at a step."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder = folder
        self.job = job
        self.batch: Any = None
        self.signalled = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch
        if self.job.get("slow"):
            time.sleep(self.job["slow"])
        if trainer.global_step == self.job.get("empty_at"):  # these rows teach nothing
            names = self.job.get("empty_ids", batch.ids)
            rows = torch.tensor([name in names for name in batch.ids])
            batch.targets[rows], batch.weights[rows] = IGNORE, 0.0
        if trainer.global_step >= self.job.get("kill_at", math.inf):  # resumed behind it: at once
            if delay := self.job.get("kill_delay"):  # anywhere: in the step, in the writer
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if trainer.global_step >= self.job.get("signal_at", math.inf) and not self.signalled:
            self.signalled = True
            if delay := self.job.get("signal_delay"):
                threading.Timer(delay, os.kill, (os.getpid(), self.job["signal"])).start()
            else:
                os.kill(os.getpid(), self.job["signal"])
        if trainer.global_step == self.job.get("limit_at"):  # of the size of a file
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.job["limit"], resource.RLIM_INFINITY))
        if trainer.global_step == self.job.get("raise_at"):
            raise RuntimeError("a fault of this rank")
        if trainer.global_step == self.job.get("memory_at"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = float(trainer.callback_metrics["train/loss"]).hex()
        line = json.dumps({"step": trainer.global_step, "ids": list(batch.ids), "loss": loss})
        with (self.folder / "trace.jsonl").open("a") as file:
            file.write(line + "\n")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.job.get("signal_in_validation"):
            os.kill(os.getpid(), self.job["signal"])

    def on_validation_end(self, trainer, pl_module):
        with (self.folder / "validations.txt").open("a") as file:
            file.write(f"{trainer.global_step}\n")


def inject(job: dict[str, Any], folder: Path) -> Keeper:
    """The keeper of checkpoints; `kill_in_save` ends the process at the n-th thing a save does."""
    keeper = Keeper(
        every_n_steps=job.get("every", 2),
        monitor="val/loss",
        asynchronous=job.get("asynchronous", True),
    )
    if (moment := job.get("kill_in_save")) is not None:
        count = [0]

        def before(function):
            def wrapped(*args, **kwargs):
                count[0] += 1
                if count[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapped

        commit._to_disk = before(commit._to_disk)
        commit._write = before(commit._write)
        commit.os.replace = before(os.replace)
        commit.temporary = before(commit.temporary)
        checkpoint_io._Summing.write = before(checkpoint_io._Summing.write)
        FileSystemWriter.write_data = before(FileSystemWriter.write_data)
        FileSystemWriter.finish = before(FileSystemWriter.finish)
    return keeper


def trace(folder: Path) -> dict[int, dict[str, Any]]:
    """Step to what it did; a step that was done twice must have done the same."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        told = json.loads(line)
        assert found.setdefault(told["step"], told) == told, "a repeated step differs"
    return found
