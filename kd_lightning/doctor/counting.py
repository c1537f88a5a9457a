"""Bytes of a computation that is not made: tensors with shapes and without contents.

The one place that uses torch's fake tensors and dispatch modes, whose modules are not public.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that live, by what they are for, and remembers the most.

    Works on real and on fake tensors alike. What exists before must be named with `hold`.
    """

    def __init__(self, granule: int = 1) -> None:
        """`granule`: sizes are rounded up to a multiple (CUDA's allocator: 512)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.granule = granule
        self.label = "other"
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most = 0
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf, self.label)
        return out

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count these, or count them as something else than before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._known.get(id(storage))
            if known is None:
                self._add(tensor, label)
            elif known[1] != label:
                self.live[known[1]] -= known[2]
                self.live[label] += known[2]
                self._known[id(storage)] = (known[0], label, known[2])

    @contextmanager
    def counting(self, label: str) -> Iterator[None]:
        """What is made inside is for this."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def forget_peak(self) -> None:
        """The most is what there is now."""
        self.most, self.peak = self.live.total(), self.live.copy()

    def _add(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = -(-storage.nbytes() // self.granule) * self.granule

        def gone(_: Any) -> None:
            _, name, bytes_ = self._known.pop(key)
            self.live[name] -= bytes_

        self._known[key] = (weakref.ref(storage, gone), label, size)
        self.live[label] += size
        total = self.live.total()
        if total > self.most:
            self.most, self.peak = total, self.live.copy()


class Paper:
    """Makes modules whose weights have a shape and no contents."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor without contents."""
        with self._mode:
            return torch.empty(shape, dtype=dtype)

    def copy(self, module: nn.Module) -> None:
        """Put tensors without contents in place of a module's (on any device, `meta` too)."""
        made: dict[int, Tensor] = {}

        def paper(x: Tensor) -> Tensor:
            if id(x) not in made:
                new = self.empty(*x.shape, dtype=x.dtype)
                learned = x.requires_grad
                made[id(x)] = nn.Parameter(new, learned) if isinstance(x, nn.Parameter) else new
            return made[id(x)]

        kept: list[Tensor] = []  # ids of tensors that live stay unique
        for part in module.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                kept.append(weight)
                setattr(part, name, paper(weight))
            for name, buffer in list(part.named_buffers(recurse=False)):
                kept.append(buffer)
                setattr(part, name, paper(buffer))
