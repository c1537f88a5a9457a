r"""The tiles' elementwise work on a GPU: one program per token, the vocabulary in blocks.

`_measure` reads a row twice, for the log-sum-exps and for :math:`\sum \phi` and :math:`\sum r`
(once where it is the label's loss); `_differentiate` reads it a third time and leaves
:math:`w (r_v - q_v \sum_u r_u) / T`. One launch of the first for each term and chunk, one of the
second for each chunk. No atomics: the same numbers in every run.

Source: online log-sum-exp: Milakov, Gimelshein 2018, arXiv 1805.02867, algorithm 3.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kd_lightning.kernels.formula import Family, Formula

BLOCK, WARPS = 4096, 8
"""Ids at a time, and warps that share them; guesses for data-centre GPUs."""

_DIRECTIONS = tl.constexpr(int(Family.DIRECTIONS))
_MIXTURE = tl.constexpr(int(Family.MIXTURE))
_POWERS = tl.constexpr(int(Family.POWERS))
_LABEL = tl.constexpr(int(Family.LABEL))


@triton.jit
def _phi_and_slope(
    log_t, log_s, FAMILY: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr
):
    """Phi, and r but for a multiple of the student's probability."""
    p, q = tl.exp(log_t), tl.exp(log_s)
    if FAMILY == _DIRECTIONS:
        gap = log_t - log_s
        phi = (A * p - B * q) * gap
        slope = -(A * p + B * q * gap)
    elif FAMILY == _MIXTURE:
        # log m without overflow or infinities: the larger part, and what the smaller adds
        mine = log_t + tl.log(tl.full([], C, log_t.dtype))
        other = log_s + tl.log(tl.full([], 1 - C, log_s.dtype))
        larger = tl.maximum(mine, other)
        log_m = larger + tl.log(1 + tl.exp(tl.minimum(mine, other) - larger))
        phi = A * p * (log_t - log_m) + B * q * (log_s - log_m)
        slope = B * q * (log_s - log_m)
        if A * (1 - C) != B * C:  # else a p + b q is a multiple of m, and what is left one of q
            slope -= (1 - C) * (A * p + B * q) * tl.exp(log_s - log_m)
    elif FAMILY == _POWERS:
        if A == 0:
            both = tl.exp(B * log_s)
            slope = both * (log_s - log_t) * (C / B * B)
            phi = C * (both * (B * (log_s - log_t) - 1) + tl.exp(B * log_t)) / (B * B)
        elif B == 0:
            mine, both = tl.exp(A * log_t), tl.exp(A * log_s)
            slope = C * (both - mine) / A
            phi = C * (mine * (A * (log_t - log_s) - 1) + both) / (A * A)
        else:
            mine, other = tl.exp((A + B) * log_t), tl.exp((A + B) * log_s)
            between = tl.exp(A * log_t + B * log_s)
            slope = C * (other - between) / A
            phi = C * (A / (A + B) * mine + B / (A + B) * other - between) / (A * B)
    else:
        gap = q - p
        phi = tl.abs(gap) / 2
        slope = tl.where(gap > 0, q, tl.where(gap < 0, -q, 0.0)) / 2
    return phi, slope


@triton.jit
def _more(top, total, z, inside):
    """A running maximum and sum of exponentials, with a block more."""
    z = tl.where(inside, z, -float("inf"))
    higher = tl.maximum(top, tl.max(z, 0))
    total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
    return higher, total


@triton.jit
def _measure(
    student, teacher, labels, value, kept,
    stride_s, stride_t, stride_kept, ids,
    FAMILY: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    T: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One term on one row: its value, and to `kept [5, n]` what its gradient needs.

    Log-sum-exps stay apart in the maximum and the rest: added up, far from 0, they would be rounded
    by more than a small log-probability is.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_s
    teacher += row * stride_t
    dtype = student.dtype.element_ty
    at = tl.arange(0, BLOCK)
    top_s = tl.full([], -float("inf"), dtype)
    top_t = tl.full([], -float("inf"), dtype)
    sum_s = tl.full([], 0.0, dtype)
    sum_t = tl.full([], 0.0, dtype)
    for start in range(0, ids, BLOCK):
        here = start + at
        z = tl.load(student + here, mask=here < ids, other=0.0) * (1 / T)
        top_s, sum_s = _more(top_s, sum_s, z, here < ids)
        if FAMILY != _LABEL:
            z = tl.load(teacher + here, mask=here < ids, other=0.0) * (1 / T)
            top_t, sum_t = _more(top_t, sum_t, z, here < ids)
    kept += row
    rest_s = tl.log(sum_s)
    tl.store(kept, top_s)
    tl.store(kept + stride_kept, rest_s)
    if FAMILY == _LABEL:
        label = tl.load(student + tl.load(labels + row))
        tl.store(value + row, (rest_s - (label - top_s)) * FACTOR)
    else:
        rest_t = tl.log(sum_t)
        tl.store(kept + 2 * stride_kept, top_t)
        tl.store(kept + 3 * stride_kept, rest_t)
        found = tl.full([], 0.0, dtype)
        slope = tl.full([], 0.0, dtype)
        for start in range(0, ids, BLOCK):
            here = start + at
            log_s = tl.load(student + here, mask=here < ids, other=0.0) * (1 / T) - top_s - rest_s
            log_t = tl.load(teacher + here, mask=here < ids, other=0.0) * (1 / T) - top_t - rest_t
            phi, r = _phi_and_slope(log_t, log_s, FAMILY, A, B, C)
            found += tl.sum(tl.where(here < ids, phi, 0.0), 0)
            slope += tl.sum(tl.where(here < ids, r, 0.0), 0)
        tl.store(value + row, found * FACTOR)
        tl.store(kept + 4 * stride_kept, slope)


@triton.jit
def _differentiate(
    student, teacher, out, labels, weights, kept,
    stride_s, stride_t, stride_out, stride_w, stride_term, stride_kept, ids, rows,
    TERMS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All terms on one row: their weighted gradient by W h + b; `out` may be `student`."""
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_s
    teacher += row * stride_t
    out += row * stride_out
    kept += row
    at = tl.arange(0, BLOCK)
    for start in range(0, rows, BLOCK):
        here = start + at
        z = tl.load(student + here, mask=here < rows, other=0.0)
        other = tl.load(teacher + here, mask=here < ids, other=0.0)
        gradient = tl.zeros([BLOCK], z.dtype)
        for k in tl.static_range(len(TERMS)):
            weight = tl.load(weights + k * stride_w + row) * (TERMS[k][5] / TERMS[k][4])
            one = kept + k * stride_term
            log_s = z * (1 / TERMS[k][4]) - tl.load(one) - tl.load(one + stride_kept)
            if TERMS[k][0] == _LABEL:
                is_label = here == tl.load(labels + row)
                gradient += weight * (tl.exp(log_s) - tl.where(is_label, 1.0, 0.0))
            else:
                log_t = other * (1 / TERMS[k][4])
                log_t = log_t - tl.load(one + 2 * stride_kept) - tl.load(one + 3 * stride_kept)
                _, r = _phi_and_slope(
                    log_t, log_s, TERMS[k][0], TERMS[k][1], TERMS[k][2], TERMS[k][3]
                )
                total = tl.load(one + 4 * stride_kept)
                gradient += tl.where(here < ids, weight * (r - tl.exp(log_s) * total), 0.0)
        gradient *= SCALE
        if CAP != 0:
            gradient *= 1 - (z / CAP) * (z / CAP)
        tl.store(out + here, gradient.to(out.dtype.element_ty), mask=here < rows)


def _numbers(formula: Formula) -> tuple[float, ...]:
    """A term as constants of the kernels."""
    shape = (int(formula.family), formula.a, formula.b, formula.c)
    return (*shape, formula.temperature, formula.factor)


def run(
    formulas: tuple[Formula, ...],
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    ids: int,
    values: Tensor,
    weights: Tensor | None = None,
    out: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> None:
    """Terms of a chunk: `student [n, V]`, `teacher [n, V_t]` to `values [K, n]`.

    With `weights [K, n]` their gradient goes to `out [n, V]`, which may be `student`. `ids` are
    those that both models know.
    """
    number, rows = student.shape
    teacher = student if teacher is None else teacher  # not read by the label's loss
    kept = student.new_empty(len(formulas), 5, number)
    block = min(BLOCK, triton.next_power_of_2(rows))
    terms = tuple(_numbers(formula) for formula in formulas)
    with torch.cuda.device_of(student):
        for k, (term, formula) in enumerate(zip(terms, formulas, strict=True)):
            width = rows if formula.family is Family.LABEL else ids
            _measure[(number,)](
                student, teacher, labels, values[k], kept[k],
                student.stride(0), teacher.stride(0), number, width,
                *term, BLOCK=block, num_warps=WARPS,
            )  # fmt: skip
        if weights is not None and out is not None:
            _differentiate[(number,)](
                student, teacher, out, labels, weights, kept,
                student.stride(0), teacher.stride(0), out.stride(0),
                weights.stride(0), 5 * number, number, ids, rows,
                TERMS=terms, SCALE=scale, CAP=softcap or 0.0, BLOCK=block, num_warps=WARPS,
            )  # fmt: skip
