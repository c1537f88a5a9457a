"""Tiles by torch's own operations: any loss, any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kd_lightning.kernels.job import Job

BLOCK_BYTES = {"cpu": 2**20}
"""Size of one temporary of a tile: on a processor it is to stay in its cache."""

OTHER_BLOCK_BYTES = 2**26
"""On other devices: enough to keep them busy, little beside a chunk; a guess."""


def run(
    job: Job, z_s: Tensor, z_t: Tensor | None, start: int, values: Tensor, weights: Tensor | None
) -> Tensor:
    """The terms of a chunk, block by block; with weights, gradients replace the logits `z_s`."""
    for here in blocks(z_s):
        there = slice(start + here.start, start + here.stop)
        logits, others = z_s[here], None if z_t is None else z_t[here]
        if job.watch is not None:
            job.watch(logits, others, there)
        terms = job.tile(logits, others, there, weights is not None)
        for row, (value, _) in zip(values, terms, strict=True):
            row[there] = value
        if weights is not None:
            factors = weights[:, there, None] * job.student.scale
            _combine(logits, [slope for _, slope in terms], factors, job.student.slope(logits))
    return z_s


def blocks(z: Tensor) -> Iterator[slice]:
    """Which tokens of a chunk are worked on at once."""
    limit = BLOCK_BYTES.get(z.device.type, OTHER_BLOCK_BYTES)
    size = max(1, limit // (z.element_size() * z.shape[1]))
    for first in range(0, len(z), size):
        yield slice(first, min(first + size, len(z)))


def _combine(
    out: Tensor, slopes: Sequence[Tensor | None], factors: Tensor, inner: Tensor | None
) -> None:
    """`out = inner * sum_k factors_k * slopes_k`; ids that a slope leaves out get nothing."""
    first, *others = (slope for slope in slopes if slope is not None)
    torch.mul(first, factors[0], out=out[:, : first.shape[1]])
    out[:, first.shape[1] :] = 0
    for slope, factor in zip(others, factors[1:], strict=True):
        out[:, : slope.shape[1]].addcmul_(slope, factor)
    if inner is not None:
        out.mul_(inner)
