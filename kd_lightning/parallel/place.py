"""Both models where the trainer's strategy wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import nn

from kd_lightning.errors import KDError
from kd_lightning.parallel.heartbeat import watch
from kd_lightning.parallel.strategy import KDStrategy

if TYPE_CHECKING:
    from kd_lightning.models.causal import CausalLM
    from kd_lightning.teachers.base import Teacher


def same_randomness(strategy: Strategy) -> None:
    """Every process goes on with the first one's random numbers; a collective call.

    A new student (or new adapters) is then the same everywhere. Of sharded ones each process keeps
    its own part: parts of different draws would make up a student that nobody seeded.
    """
    torch.set_rng_state(strategy.broadcast(torch.get_rng_state()))


def place(strategy: Strategy, student: CausalLM, teacher: Teacher | None, loss: nn.Module) -> None:
    """Shard both models, or leave the student to the strategy and move the teacher whole."""
    watch(strategy)
    if teacher is not None:
        teacher.attach(student)
    if isinstance(strategy, KDStrategy) and strategy.mesh is not None:
        if any(p.requires_grad for p in loss.parameters()):
            raise KDError(
                f"{type(loss).__name__} learns parameters of its own, which KDStrategy does not "
                "add up over processes: write --trainer.strategy=ddp"
            )
        strategy.shard_student(student)
        if teacher is not None:
            teacher.spread = strategy.shard_teacher
    elif isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)) or (
        isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, KDStrategy)
    ):
        raise KDError(
            f"{type(strategy).__name__} does not know the teacher: to shard both models write "
            "--trainer.strategy=kd_lightning.parallel.strategy.KDStrategy (configs/trainer/"
            "fsdp.yaml), otherwise --trainer.strategy=ddp"
        )
    if teacher is not None:
        teacher.materialize(strategy.root_device)
