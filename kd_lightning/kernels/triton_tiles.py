"""Tiles by Triton kernels: losses that are formulas."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.kernels import eager, triton_kernels
from kd_lightning.kernels.job import Job


def run(
    job: Job, z_s: Tensor, z_t: Tensor | None, start: int, values: Tensor, weights: Tensor | None
) -> Tensor:
    """The terms of a chunk; with weights, their gradient, as narrow as the next product takes it.

    It replaces the logits `z_s` where that is float32.
    """
    assert job.labels is not None
    student, there = job.student, slice(start, start + len(z_s))
    if job.watch is not None:
        for here in eager.blocks(z_s):
            looked = slice(start + here.start, start + here.stop)
            job.watch(z_s[here], None if z_t is None else z_t[here], looked)
    out, factors = z_s, None
    if weights is not None:
        factors = weights[:, there]
        out = z_s.new_empty(z_s.shape, dtype=student.dtype) if student.mixed else z_s
    triton_kernels.run(
        job.formulas, z_s, z_t, job.labels[there], job.vocab, values[:, there],
        factors, out, student.scale, student.softcap,
    )  # fmt: skip
    return out
