"""Tiles by torch.compile: any loss that it can trace, values and gradient in one graph.

Every call has the same number of tokens (a block that is not full gets tokens without weight), so
nothing is compiled again when the number of tokens changes from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from kd_lightning.errors import KDError
from kd_lightning.kernels.job import Job, Pure

ROWS = {"cpu": 32}
"""Tokens at a time."""

OTHER_ROWS = 128
"""On other devices; a guess."""


def rows(device: str) -> int:
    """Tokens at a time on a type of device."""
    return ROWS.get(device, OTHER_ROWS)


def run(
    job: Job, z_s: Tensor, z_t: Tensor | None, start: int, values: Tensor, weights: Tensor | None
) -> Tensor:
    """The terms of a chunk; with weights, gradients replace the logits `z_s`."""
    assert job.pure is not None and job.labels is not None
    step = compiled(job.pure, job.student.scale, job.student.softcap)
    size = rows(z_s.device.type)
    for first in range(0, len(z_s), size):
        count = min(size, len(z_s) - first)
        here = slice(first, first + count)
        there = slice(start + first, start + first + count)
        logits, others = z_s[here], None if z_t is None else z_t[here]
        if job.watch is not None:
            job.watch(logits, others, there)
        factors = None
        if weights is not None:  # strides of its own: torch compiles for these, too
            factors = weights[:, there].clone(memory_format=torch.contiguous_format)
        given = (logits, others, job.labels[there], factors)
        if count == size:
            values[:, there] = _called(step, *given)
            continue
        full = [None if x is None else _filled(x, size, int(x is factors)) for x in given]
        values[:, there] = _called(step, *full)[:, :count]
        if full[0] is not None:
            logits.copy_(full[0][:count])
    return z_s


def _called(step: Callable[..., Tensor], *given: Tensor | None) -> Tensor:
    try:
        return step(*given)
    except TorchDynamoException as error:
        why = str(error).splitlines()[0]
        raise KDError(
            f"torch.compile cannot follow the loss ({why}): write kernel: torch"
        ) from error


def _filled(x: Tensor, size: int, axis: int) -> Tensor:
    """With zeros up to `size` along an axis."""
    shape = list(x.shape)
    shape[axis] = size
    more = x.new_zeros(shape)
    more.narrow(axis, 0, x.shape[axis]).copy_(x)
    return more


@lru_cache(maxsize=64)
def compiled(pure: Pure, scale: float, softcap: float | None) -> Callable[..., Tensor]:
    """The compiled tile: logits, labels and weights `[K, n]` or None to values `[K, n]`.

    With weights the student's logits are replaced by the gradient. One for each loss and head;
    torch counts its compilations, by number type and width, on its own.
    """

    def step(
        student: Tensor, teacher: Tensor | None, labels: Tensor, factors: Tensor | None
    ) -> Tensor:
        terms = pure(student, teacher, labels, factors is not None)
        if factors is not None:
            gradient = torch.zeros_like(student)
            for (_, slope), factor in zip(terms, factors, strict=True):
                assert slope is not None
                part = slope * (factor * scale)[:, None]
                gradient = gradient + F.pad(part, (0, student.shape[1] - part.shape[1]))
            if softcap is not None:
                gradient = gradient * (1 - (student / softcap).square())
            student.copy_(gradient)
        return torch.stack([value for value, _ in terms])

    # code of its own: torch keeps what it compiles with the code, and at most 8 of each
    code: Any = step.__code__.replace(co_name="tile")
    own = FunctionType(code, step.__globals__, "tile", step.__defaults__, step.__closure__)
    made: Callable[..., Tensor] = torch.compile(own, fullgraph=True, dynamic=False)
    return made
