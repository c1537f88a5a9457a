r"""Head and loss in one pass over chunks of tokens, its gradient made on the way.

For each chunk: both models' logits once, the values of every term, and in place of the student's
logits their gradient :math:`G`, from which :math:`G W` and :math:`G^\top h` follow. The backward
pass multiplies by what arrives from above. No tensor of N x V elements exists, and no head is
projected twice.

Source: gradient in the forward pass: Hsu et al. 2024 (Liger Kernel), arXiv 2410.10989, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_lightning.kernels import eager
from kd_lightning.kernels.job import Job


@dataclass
class Swept:
    """What one pass finds; gradients are to be multiplied by `size`."""

    values: Tensor  # [K, N]
    hidden: Tensor | None = None  # [N, D]
    weight: Tensor | None = None  # [V, D]
    bias: Tensor | None = None  # [V]
    size: Tensor | None = None  # []


@torch.no_grad()
def sweep(
    job: Job,
    hidden: Tensor,
    weights: Tensor | None = None,
    needs: Sequence[bool] = (False, False, False),
) -> Swept:
    """One pass over all tokens; with `weights [K, N]`, also the gradients that are needed.

    The weights are brought to size 1 first, so that half-precision factors neither vanish nor
    overflow; hence `size`.
    """
    student, teacher = job.student, job.teacher
    number, width = hidden.shape
    done = Swept(student.empty(job.terms, number))
    if weights is not None:
        weights = weights.to(student.wide)
        if number > 0:
            largest = weights.abs().amax()
            done.size = torch.where(largest > 0, largest, 1.0)
            weights = weights / done.size
        if needs[0]:
            done.hidden = student.empty(number, width)
        if needs[1]:
            done.weight = student.empty(student.rows, width).zero_()
        if needs[2]:
            done.bias = student.empty(student.rows).zero_()
    run, chunk = _tiles(job, hidden.device.type)
    room = min(chunk, number)
    tile_s = student.empty(room, student.rows)
    tile_t = None if teacher is None else teacher.empty(room, teacher.rows)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, number, chunk):
            stop = min(start + chunk, number)
            states = student.factor(hidden[start:stop])
            z_s = student.logits(states, tile_s[: stop - start])
            z_t = None
            if teacher is not None and tile_t is not None and job.hidden_t is not None:
                z_t = teacher.factor(job.hidden_t[start:stop])
                z_t = teacher.logits(z_t, tile_t[: stop - start])
            gradient = run(job, z_s, z_t, start, done.values, weights)
            if weights is None:
                continue
            if done.bias is not None:
                done.bias += gradient.sum(0, dtype=student.wide)
            gradient = student.rounded(gradient)
            if done.hidden is not None:
                student.to_hidden(gradient, done.hidden[start:stop])
            if done.weight is not None:
                student.to_weight(gradient, states, done.weight)
    return done


def _tiles(job: Job, device: str) -> tuple[Callable[..., Tensor], int]:
    """What computes a chunk's tiles and returns their gradient, and how many tokens a chunk has."""
    if job.back_end == "triton":
        from kd_lightning.kernels import triton_tiles

        return triton_tiles.run, job.chunk
    if job.back_end == "compile":
        from kd_lightning.kernels import compiled

        size = compiled.rows(device)
        return compiled.run, max(job.chunk - job.chunk % size, min(job.chunk, size))
    return eager.run, job.chunk


class _Total(torch.autograd.Function):
    """The weighted sum of all terms; its gradient is ready when the value is."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, job: Job
    ) -> tuple[Tensor, Tensor]:
        done = sweep(job, hidden, weights, ctx.needs_input_grad[:3])
        ctx.kinds = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(done.hidden, done.weight, done.bias, done.size)
        ctx.mark_non_differentiable(done.values)
        return (weights * done.values).sum(), done.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, size = ctx.saved_tensors
        return *_finish(gradients, ctx.kinds, upstream, size), None, None


class _Values(torch.autograd.Function):
    """Every term of every token; the chunks are computed again once it is known what arrives."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> Tensor:
        ctx.job = replace(job, watch=None)  # it has seen the tokens by then
        ctx.kinds = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(hidden, weight)  # the weight, so that a change in between is noticed
        return sweep(job, hidden).values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, _ = ctx.saved_tensors
        done = sweep(ctx.job, hidden, upstream, ctx.needs_input_grad[:3])
        gradients = [done.hidden, done.weight, done.bias]
        return *_finish(gradients, ctx.kinds, None, done.size), None


def _finish(
    gradients: Sequence[Tensor | None], kinds: Sequence[Any], *factors: Tensor | None
) -> list[Tensor | None]:
    """Gradients times what arrives, in the types of what they belong to."""
    factor: Tensor | None = None
    for each in factors:
        if each is not None:
            factor = each if factor is None else factor * each
    made: list[Tensor | None] = []
    for x, kind in zip(gradients, kinds, strict=True):
        if x is None:
            made.append(None)
        elif factor is None:
            made.append(x.to(kind))
        else:
            made.append(torch.mul(x, factor, out=torch.empty_like(x, dtype=kind)))
    return made


def total(
    job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of `weights [K, N]` times values, `[]` with a graph, and the values `[K, N]` without."""
    if not _learns(hidden, weight, bias):
        found = sweep(job, hidden).values
        return (weights.to(found.dtype) * found).sum(), found
    apply: Any = _Total.apply
    made: tuple[Tensor, Tensor] = apply(hidden, weight, bias, weights.to(job.student.wide), job)
    return made


def values(job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The value of every term at every token, `[K, N]`, with a graph: any gradient may arrive."""
    if not _learns(hidden, weight, bias):
        return sweep(job, hidden).values
    apply: Any = _Values.apply
    made: Tensor = apply(hidden, weight, bias, job)
    return made


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
