"""Which code computes the tiles: torch everywhere, a compiled tile, or Triton kernels.

All give the same numbers. `auto` takes what was fastest where it could be measured: torch's own
operations on a processor (the products are nearly all of the time, and nothing has to be compiled
first); on CUDA, from counted memory traffic alone, Triton where every term is a formula that the
kernels know, else the compiled tile, else torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Formula

BackEnd: TypeAlias = Literal["torch", "compile", "triton"]
Kernel: TypeAlias = Literal["auto", "torch", "compile", "triton"]

Stated: TypeAlias = Mapping[str, tuple[Formula | None, bool]]
"""Each term's formula, if it has one, and whether it states its slope."""

_kernel: ContextVar[Kernel] = ContextVar("kernel", default="auto")


@contextmanager
def kernel(name: Kernel) -> Iterator[None]:
    """Losses that are computed inside use this back end."""
    token = _kernel.set(name)
    try:
        yield
    finally:
        _kernel.reset(token)


def pick(device: str, terms: Stated, whole: bool = True) -> BackEnd:
    """The back end for terms on a type of device.

    Args:
        device: such as cpu or cuda.
        terms: what they state.
        whole: whether the teacher, if any, gives its distribution on all ids.

    Raises:
        KDError: the one that was asked for cannot be used here.
    """
    name = _kernel.get()
    if name != "auto":
        refuse(name, device, terms, whole)
        return name
    if device != "cuda" or not whole or not has_triton():
        return "torch"
    if all(formula for formula, _ in terms.values()):
        return "triton"
    return "compile" if all(slope for _, slope in terms.values()) else "torch"


def refuse(name: Kernel, device: str, terms: Stated, whole: bool = True) -> None:
    """Raise KDError where a back end that is asked for by name cannot be used."""
    if name in ("auto", "torch"):
        return
    if not whole:
        raise KDError(
            f"kernel: {name} needs the teacher's whole distribution, and this teacher gives a few "
            "ids: write kernel: auto"
        )
    if (device == "cuda" or name == "triton") and not has_triton():
        raise KDError(f"kernel: {name} needs Triton: pip install triton, or write kernel: auto")
    if name == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise KDError(f"kernel: triton runs on CUDA devices, not on {device}: write kernel: auto")
    if name == "compile" and device == "cpu" and not has_compiler():
        raise KDError(
            "kernel: compile needs a C++ compiler: install g++ (or name yours in CXX), or write "
            "kernel: auto"
        )
    for term, (formula, slope) in terms.items():
        if name == "triton" and formula is None:
            raise KDError(f"kernel: triton knows no formula of the loss {term}: write kernel: auto")
        if name == "compile" and not slope:
            raise KDError(
                f"kernel: compile does not differentiate: give the loss {term} a "
                "compare_with_slope, or write kernel: auto"
            )


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def has_compiler() -> bool:
    """Whether there is what torch.compile builds its code for processors with."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or default) is not None
