"""SGLang's own server on a processor without AMX, run by the interpreter of `make sglang`.

Its server, scheduler, model, sampler and log-probabilities are SGLang's. Two things are not here:
the compiled kernels (`sgl_kernel`), for which SGLang has other ways on such a processor, and the
compiled part of torchvision, which no text needs. Both are stood in for by what satisfies imports
and raises when it is called. Its other processes import this file again, and so find the same.

Its seeds cannot be shown so: the sampler of `--enable-deterministic-inference` hashes by a kernel.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import torch


class Absent:
    """A kernel that is not here."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self._name} is not here: SGLang's kernels are not installed")


class Kernels(types.ModuleType):
    """`sgl_kernel` and its modules, whatever is imported from them."""

    __path__ = ()

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds them where nothing else did."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] == "sgl_kernel":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Kernels(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


sys.meta_path.append(Finder())
if torch.version.cuda is None:  # torchvision's packages are built for CUDA: names without kernels
    vision = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        vision.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(sys.argv[1:]))
