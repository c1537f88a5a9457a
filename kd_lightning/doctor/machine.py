"""The machine that a configuration is written for, which need not be this one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kd_lightning.errors import KDError
from kd_lightning.parallel.strategy import KDStrategy

UNITS = {"B": 1, **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}}
UNITS |= {f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class Machine:
    """What `trainer` says of devices, and what the call adds to it."""

    ranks: int = 1
    """Processes, one for each device."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of which kind."""
    memory: int | None = None
    """Bytes of one device; None: not known."""
    precision: str = "32-true"
    """The trainer's."""
    shards: int = 1
    """Over how many ranks the weights are spread; 1: each rank holds them whole."""
    keeps: bool = False
    """Whether gathered layers of the student stay whole until the backward pass."""
    offloads: bool = False
    """Whether the student's shards, with gradients and optimizer state, wait in host memory."""

    @property
    def here(self) -> bool:
        """Whether this machine has such a device."""
        return self.device == "cpu" or torch.cuda.is_available()

    @property
    def gathers_half(self) -> bool:
        """Whether sharded weights are gathered in bfloat16, whatever they are stored in."""
        return self.shards > 1 and self.half is not None

    @property
    def half(self) -> torch.dtype | None:
        """What autocast computes in, if it is on."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else None

    @classmethod
    def of(cls, trainer: Any, gpus: int | None = None, memory: str | None = None) -> Machine:
        """From the configuration's `trainer`, with the call's `--gpus` and `--memory`."""
        accelerator = str(trainer.accelerator)
        wants = accelerator in ("gpu", "cuda")
        wants = wants or (accelerator == "auto" and torch.cuda.is_available())
        cuda = gpus is not None or wants
        ranks = gpus if gpus is not None else _devices(trainer.devices, cuda) * trainer.num_nodes
        if ranks < 1:
            raise KDError(f"--gpus={gpus}: write how many GPUs the run will have, at least 1")
        held = parse(memory) if memory is not None else None
        if held is None and cuda and torch.cuda.is_available():
            held = int(torch.cuda.get_device_properties(0).total_memory)
        elif held is None and not cuda:
            held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        return cls(
            ranks=ranks,
            device="cuda" if cuda else "cpu",
            memory=held,
            precision=str(trainer.precision or "32-true"),
            **_sharding(trainer.strategy, ranks),
        )


def in_this_process(accelerator: Any) -> dict[str, Any]:
    """Settings of a trainer that tries things here, whatever machine they are written for."""
    gpu = str(accelerator) in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
    }


def parse(text: str) -> int:
    """`141GiB`, `80 GB`, `16000000000` in bytes."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?i?B?)\s*", text)
    unit = found[2] if found else ""
    unit = unit if unit.endswith("B") or not unit else f"{unit}B"
    if found is None or (unit and unit not in UNITS) or found[1].count(".") > 1:
        raise KDError(f"--memory={text}: write a size such as 80GB or 141GiB")
    return int(float(found[1]) * UNITS[unit or "B"])


def shown(size: float) -> str:
    """Bytes as a person reads them: `1.3 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= factor:
            value = size / factor
            return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.1f} {unit}"
    return f"{size:.0f} B"


def _devices(devices: Any, cuda: bool) -> int:
    if isinstance(devices, list):
        return len(devices)
    if str(devices).lstrip("-").isdigit() and int(devices) > 0:
        return int(devices)
    return max(1, torch.cuda.device_count()) if cuda else 1


def _sharding(strategy: Any, ranks: int) -> dict[str, Any]:
    """How a configured strategy spreads the weights."""
    if isinstance(strategy, KDStrategy):
        sharding = strategy.of_student
        return {
            "shards": max(1, ranks // strategy.replicas),
            "keeps": not sharding.reshard_after_forward,
            "offloads": sharding.cpu_offload,
        }
    name = strategy.get("class_path", "") if hasattr(strategy, "get") else str(strategy)
    if not name.endswith("KDStrategy"):
        return {}
    settings = (strategy.get("init_args") if hasattr(strategy, "get") else None) or {}
    student = settings.get("student") or {}
    return {
        "shards": max(1, ranks // int(settings.get("replicas") or 1)),
        "keeps": student.get("reshard_after_forward") is False,
        "offloads": bool(student.get("cpu_offload")),
    }
