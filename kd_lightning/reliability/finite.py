"""A loss or gradient that is not finite stops the run before the weights are touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.types import Batch


def stop_unless_finite(
    trainer: Trainer, values: Mapping[str, Tensor], norm: Tensor, batch: Batch
) -> None:
    """Raise if a term's value or the gradient's norm is not finite; the state is saved first.

    Values and norm are the same on all ranks, so all ranks stop at the same step. The checkpoint
    holds the weights before the step; each rank names its rows in a file beside it.
    """
    told = torch.stack([value.double() for value in values.values()])
    if bool(told.isfinite().all() & norm.isfinite().to(told.device)):
        return
    step = trainer.global_step
    state = Path(trainer.default_root_dir) / "not_finite" / f"step-{step}.ckpt"
    trainer.save_checkpoint(state)
    rows = state.with_name(f"{state.stem}-rank-{trainer.global_rank}.json")
    rows.write_text(json.dumps({"step": step, "ids": batch.ids}))
    terms = ", ".join(f"{name} {float(value):g}" for name, value in values.items())
    raise KDError(
        f"loss {terms}, gradient norm {float(norm):g} at step {step}: stopped before the optimizer "
        f"moved. Rows of this rank: {', '.join(batch.ids)}. The state is in {state}, the rows in "
        f"{rows}; look at the rows, or lower the learning rate"
    )
