"""A loss or gradient that is not finite is found before the weights are touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.types import Batch


@dataclass(frozen=True)
class NotFinite:
    """What happens when a loss or a gradient is not a finite number."""

    then: Literal["raise", "skip", "roll_back"] = "raise"
    """`raise` saves the state and stops; `skip` leaves the batch out; `roll_back` also returns to
    the weights and optimizer state of the last checkpoint (the data goes on)."""
    budget: int = 10
    """How many times in a run that may happen before it stops all the same."""


class FiniteGuard:
    """Decides, before the optimizer moves, whether it may; on all ranks alike.

    Values and gradient norm are the same on all ranks, so all ranks decide alike. Each rank writes
    its batch beside: the rows' names, and the tensors to replay the step.
    """

    def __init__(self, settings: NotFinite) -> None:
        """Store the settings.

        Args:
            settings: What to do.
        """
        self.settings = settings
        self.met = 0

    def passes(
        self, trainer: Trainer, values: Mapping[str, Tensor], norm: Tensor, batch: Batch
    ) -> bool:
        """Whether everything is finite; else the step must not be taken, or the run stops."""
        told = torch.stack([value.double() for value in values.values()])
        if bool(told.isfinite().all() & norm.isfinite().to(told.device)):
            return True
        self.met += 1
        step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "not_finite"
        rows = write_replay(folder, step, trainer.global_rank, batch)
        terms = ", ".join(f"{name} {float(value):g}" for name, value in values.items())
        what = f"loss {terms}, gradient norm {float(norm):g} at step {step}"
        where = f"Rows of this rank: {', '.join(batch.ids)} (in {rows})"
        if self.settings.then == "raise" or self.met > self.settings.budget:
            state = folder / f"step-{step}.ckpt"
            trainer.save_checkpoint(state)
            spent = "" if self.settings.then == "raise" else f" (time {self.met})"
            raise KDError(
                f"{what}: stopped before the optimizer moved{spent}. {where}. The state is in "
                f"{state}; look at the rows, or lower the learning rate"
            )
        done = "the batch is skipped"
        if self.settings.then == "roll_back":
            done = f"back to {roll_back(trainer)}; the data goes on"
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()
        rank_zero_warn(f"{what}: {done} ({self.met} of {self.settings.budget}). {where}")
        return False


def write_replay(folder: Path, step: int, rank: int, batch: Batch) -> Path:
    """The batch of a rank: its names as JSON, its tensors for `torch.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"step-{step}-rank-{rank}.json"
    rows.write_text(json.dumps({"step": step, "ids": batch.ids}))
    tensors = {name: v.cpu() for name, v in vars(batch).items() if isinstance(v, Tensor)}
    told = {"step": step, "rank": rank, "ids": list(batch.ids), "tensors": tensors}
    torch.save(told, rows.with_suffix(".pt"))
    return rows


def read_replay(path: Path) -> Batch:
    """The batch of a replay file, without its examples."""
    told: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return Batch(**told["tensors"], ids=tuple(told["ids"]))


def roll_back(trainer: Trainer) -> Path:
    """Weights, loss and optimizer of the newest whole checkpoint; a collective call."""
    keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, Keeper)]
    found = keepers[0].newest(trainer) if keepers else None
    if found is None:
        raise KDError(
            "there is no checkpoint to roll back to: list callbacks.RunCheckpoint with "
            "every_n_steps, or write --model.not_finite.then=skip"
        )
    module = trainer.lightning_module
    content = trainer.strategy.load_checkpoint(found)
    if "state_dict" in content:  # else a sharding strategy has put everything in its place
        module.on_load_checkpoint(content)
        trainer.strategy.load_model_state_dict(content, strict=module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(content)
    return found
