"""The learned number of a reward model, beside its exported student."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.scores import ScalarHead

HEAD = "reward_head.safetensors"
"""The file that makes an exported student a reward model."""


def head_of(loss: nn.Module) -> Tensor:
    """The weight of the loss's scalar head."""
    heads = [m for m in loss.modules() if isinstance(m, ScalarHead)]
    if len(heads) != 1:
        raise KDError(
            "a reward model is a student that learned with the score ScalarHead: write "
            "--model.loss=configs/loss/reward_model.yaml"
        )
    return heads[0].weight.detach().float().cpu().clone()


def write_head(folder: Path, weight: Tensor) -> Path:
    """Write it into the folder of the exported student."""
    if not (folder / "config.json").is_file():
        raise KDError(f"{folder} holds no exported student: put ExportStudent before it")
    save_file({"weight": weight.contiguous()}, folder / HEAD)
    return folder / HEAD


def read_head(folder: Path) -> Tensor:
    """The way back."""
    try:
        weight = load_file(folder / HEAD)["weight"]
    except (OSError, KeyError, ValueError) as error:
        raise KDError(f"{folder / HEAD} cannot be read: export the reward model again") from error
    if weight.ndim != 1 or not torch.isfinite(weight).all():
        raise KDError(f"{folder / HEAD} holds no finite vector: export the reward model again")
    return weight
