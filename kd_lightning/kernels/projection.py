"""A linear head as plain tensors, multiplied with float32 results whatever the inputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)
MIXED = {"cuda"}
"""Devices that multiply half-precision factors into float32 results."""

_FLOATS = (*HALVES, torch.float32, torch.float64)


@dataclass(frozen=True)
class Projection:
    r"""From hidden states to logits, :math:`z = c \tanh((W h + b) \, s / c)`, as plain tensors."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    """s; 1 in most families."""
    softcap: float | None = None
    """c; none in most families."""
    own_precision: bool = False
    """Never under autocast."""

    @classmethod
    def of(cls, linear: nn.Module, **more: Any) -> Projection | None:
        """The tensors of a linear layer, or None where it is more than a product and a sum.

        Adapters, quantised and sharded weights, hooks and replaced forwards are called, not read.
        """
        if type(linear) is not nn.Linear or "forward" in vars(linear) or _hooked(linear):
            return None
        tensors = [x for x in (linear.weight, linear.bias) if x is not None]
        if not all(_plain(x) for x in tensors) or len({x.device for x in tensors}) > 1:
            return None
        return cls(linear.weight, linear.bias, **more)


def _hooked(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def _plain(x: Tensor) -> bool:
    wrapper = hasattr(type(x), "__tensor_flatten__")  # a tensor made of others, such as a shard
    return x.layout is torch.strided and x.dtype in _FLOATS and not wrapper


class Multiplier:
    """A projection made ready for many tiles: the weight is cast once.

    The product's factors have the type that the model itself multiplies in (autocast's, where that
    is on); sums and results are float32 (float64 for float64). Where the device has no product of
    half-precision factors with float32 results, the rounded factors are widened first.
    """

    def __init__(self, projection: Projection) -> None:
        """Reads the present autocast state."""
        weight = projection.weight.detach()
        device = weight.device.type
        self.dtype = weight.dtype
        autocast = not projection.own_precision and torch.is_autocast_enabled(device)
        if autocast and weight.dtype != torch.float64:
            self.dtype = torch.get_autocast_dtype(device)
        self.mixed = self.dtype in HALVES and device in MIXED
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.weight = self.factor(weight)
        self.bias = None if projection.bias is None else projection.bias.detach().to(self.wide)
        self.scale = projection.scale
        self.softcap = projection.softcap

    @property
    def rows(self) -> int:
        """V, padding included."""
        return int(self.weight.shape[0])

    def factor(self, x: Tensor) -> Tensor:
        """As a factor of a product: rounded as the model does, widened where it must be."""
        x = x.to(self.dtype)
        return x if self.mixed else x.to(self.wide)

    def empty(self, *shape: int) -> Tensor:
        """A tensor for results."""
        return self.weight.new_empty(shape, dtype=self.wide)

    def logits(self, states: Tensor, out: Tensor) -> Tensor:
        """`[C, D]` factors to logits `[C, V]`, written into `out`."""
        self._product(states, self.weight.T, out)
        if self.bias is not None:
            out.add_(self.bias)
        if self.softcap is not None:
            return out.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return out.mul_(self.scale) if self.scale != 1.0 else out

    def slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of the logits by W h + b over the scale, or None where it is 1."""
        if self.softcap is None:
            return None
        return (logits / self.softcap).square_().neg_().add_(1.0)

    def to_hidden(self, gradient: Tensor, out: Tensor) -> None:
        """`rounded` gradients by W h + b `[C, V]` to gradients by the hidden states `[C, D]`."""
        self._product(gradient, self.weight, out)

    def to_weight(self, gradient: Tensor, states: Tensor, out: Tensor) -> None:
        """Adds the gradient by the weight `[V, D]` to `out`, from a `rounded` one."""
        gradient = gradient.T
        if self.mixed:
            torch.addmm(out, gradient, states, out_dtype=torch.float32, out=out)
        else:
            torch.addmm(out, gradient, states, out=out)

    def rounded(self, gradient: Tensor) -> Tensor:
        """Gradients by W h + b as factors of products."""
        return gradient.to(self.dtype) if self.mixed else gradient

    def _product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        if self.mixed:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
        else:
            torch.mm(a, b, out=out)
