"""Bytes that are alive and FLOPs of matrix products, of code that runs on tensors without numbers.

    with on_a_gpu(), FakeTensorMode(), Counter() as counter:
        ...

Fake tensors of the processor stand for those of a GPU (a torch without CUDA cannot slice others);
`on_a_gpu` makes this library do what it does there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_lightning.kernels import eager, projection
from kd_lightning.losses import chunks

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)


class Counter(TorchDispatchMode):
    """Counts what is made while it is on; which tokens count is answered by: all."""

    def __init__(self) -> None:
        """Nothing is alive yet."""
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten.nonzero.default:
            out = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
        else:
            out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            a, b = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            self.flops += 2 * a.numel() * b.shape[-1]
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._see(x.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return out

    def _see(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.bytes += storage.nbytes()
        weakref.finalize(storage, self._gone, id(storage), storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Sizes of chunks and blocks, and products with float32 results, as on CUDA."""
    budget = chunks.DEVICE_CHUNK_BYTES["cuda"]
    with (
        patch.object(projection, "MIXED", {"cpu"}),
        patch.dict(chunks.DEVICE_CHUNK_BYTES, {"cpu": budget}),
        patch.dict(eager.BLOCK_BYTES, {"cpu": eager.OTHER_BLOCK_BYTES}),
    ):
        yield
