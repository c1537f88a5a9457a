"""Sharded weights and optimizer states as they are saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from kd_lightning.parallel import folder as files
from kd_lightning.parallel.learned import learned_only, refuse_unless_same
from kd_lightning.parallel.sharding import give_back
from kd_lightning.reliability.checkpoint_io import opened

WEIGHTS = "state_dict"
"""Under which name a checkpoint holds the module's tensors."""


def collect(module: nn.Module, whole: bool) -> dict[str, Any]:
    """What is learned: shards, or (whole) full tensors on the first process; collective.

    Of a module that is not sharded: its own tensors.
    """
    give_back(module)
    if not is_sharded(module):
        return learned_only(module, module.state_dict())
    options = StateDictOptions(full_state_dict=whole, cpu_offload=True)
    return learned_only(module, get_model_state_dict(module, options=options))


def is_sharded(module: nn.Module) -> bool:
    """Whether any part is."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def names(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of an optimizer's parameters, in its order."""
    of = {id(p): name for name, p in module.named_parameters()}
    return [of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def by_number(state: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state by names as every plain optimizer takes it: by numbers."""
    number = {name: i for i, name in enumerate(order)}
    return {
        "state": {number[name]: value for name, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def by_name(state: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The way back."""
    return {
        "state": {order[i]: value for i, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [order[i] for i in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def read_weights(path: Path, module: nn.Module) -> None:
    """A module's learned tensors out of a checkpoint, file or folder; nothing else of it.

    The module may be sharded (a collective call then) or whole, whatever the checkpoint was.
    """
    (read_folder if path.is_dir() else read_file)(path, module, ())


def read_folder(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Weights and optimizer states of a sharded checkpoint in place; returns the rest."""
    index = files.read_index(path)
    prefix = f"{WEIGHTS}."
    found = {n.removeprefix(prefix) for n in index.state_dict_metadata if n.startswith(prefix)}
    refuse_unless_same(module, found, path)
    give_back(module)
    weights = get_model_state_dict(module) if is_sharded(module) else module.state_dict()
    wanted = {WEIGHTS: {name: weights[name] for name in found}}
    files.read_into(wanted, path)
    if is_sharded(module):
        set_model_state_dict(module, wanted[WEIGHTS], options=StateDictOptions(strict=False))
    else:
        module.load_state_dict(wanted[WEIGHTS], strict=False)
    for number, optimizer in enumerate(optimizers):
        name = f"optimizer_{number}"
        state = {name: get_optimizer_state_dict(module, optimizer)}
        files.read_into(state, path)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[name])
    return files.read_rest(path)


def read_file(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """The same of a checkpoint in one file, of whatever strategy."""
    checkpoint = opened(path, mmap=True)
    give_back(module)
    state = checkpoint.pop(WEIGHTS)
    refuse_unless_same(module, state, path)
    whole = StateDictOptions(full_state_dict=True, strict=False)
    if is_sharded(module):
        set_model_state_dict(module, state, options=whole)
    else:
        module.load_state_dict(state, strict=False)
    for optimizer, saved in zip(optimizers, checkpoint.pop("optimizer_states", ()), strict=False):
        named = by_name(saved, names(module, optimizer))
        set_optimizer_state_dict(module, optimizer, optim_state_dict=named, options=whole)
    return checkpoint
