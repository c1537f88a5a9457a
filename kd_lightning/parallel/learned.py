"""Which tensors of a module are learned: those, and no others, belong into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from kd_lightning.errors import KDError

EXTRA = "_extra_state"
"""How torch ends the names of what modules add to their state."""


def learned_names(module: nn.Module) -> set[str]:
    """Names of what a state must hold: trainable parameters (tied ones once), stored buffers."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in module.named_buffers()}
    held = {n for n in module.state_dict() if n in buffers or n.endswith(EXTRA)}
    return trained | held


def learned_only(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A module's state without what is loaded anew anyway (frozen weights under adapters)."""
    names = learned_names(module)
    return {name: value for name, value in state.items() if name in names}


def refuse_unless_same(module: nn.Module, found: Iterable[str], where: object) -> None:
    """One sentence where a checkpoint's names are not what this module learns.

    Frozen tensors may be there, and learned ones must.
    """
    found, known = set(found), module.state_dict().keys()
    strange = sorted(found - known)
    missing = sorted(learned_names(module) - found)
    if strange or missing:
        names, what = (missing, "lacks") if missing else (strange, "also holds")
        raise KDError(
            f"the checkpoint {where} is of another student or loss than the configuration: it "
            f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        )
