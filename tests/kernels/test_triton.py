"""Which losses are formulas; Triton's kernels in its interpreter, and compiled for a GPU."""

import os
import subprocess
import sys

import pytest

from kd_lightning.losses.base import Divergence
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.sft import CrossEntropy
from tests.conftest import ROOT
from tests.kernels.kit import EVERY

NAMES = {
    "AlphaBetaDivergence", "AlphaDivergence", "CrossEntropy", "ForwardKL", "Hellinger",
    "JensenShannon", "OnSource", "ReverseKL", "SkewForwardKL", "SkewReverseKL", "SymmetricKL",
    "TotalVariation",
}  # fmt: skip
"""Losses that promise a formula."""


def test_who_has_a_formula():
    assert {type(loss).__name__ for loss in EVERY if loss.formula()} == NAMES


class Changed(JensenShannon):
    name = "changed"

    def per_token(self, log_s, log_t):
        return super().per_token(log_s, log_t).square()


class ChangedSlope(JensenShannon):
    def compare_with_slope(self, log_s, log_t, targets):
        return Divergence.compare_with_slope(self, log_s, log_t, targets)


class ChangedRow(CrossEntropy):
    def per_row(self, tokens):
        return 2 * tokens.nll()


def test_a_changed_loss_does_not_inherit_the_formula():
    assert JensenShannon().formula() is not None
    for cls in (Changed, ChangedSlope, ChangedRow):
        assert cls().formula() is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kd_lightning.kernels import triton_kernels as kernels
from kd_lightning.losses import CrossEntropy, JensenShannon

def compiled(kernel, pointers, numbers, **constants):
    types = {**pointers, **dict.fromkeys(numbers.split(), "i32"), **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature={n: types[n] for n in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})

floats = lambda names: dict.fromkeys(names.split(), "*fp32")
terms = tuple(kernels._numbers(x.formula()) for x in (JensenShannon(0.3, 2.0), CrossEntropy()))
names = ("FAMILY", "A", "B", "C", "T", "FACTOR")
common = floats("student teacher kept") | {"labels": "*i64"}
for term in terms:
    made = compiled(kernels._measure, common | floats("value"), "stride_s stride_t stride_kept ids",
                    **dict(zip(names, term)), BLOCK=kernels.BLOCK)
    assert made.asm["cubin"]
made = compiled(kernels._differentiate, common | floats("weights") | {"out": "*bf16"},
                "stride_s stride_t stride_out stride_w stride_term stride_kept ids rows",
                TERMS=terms, SCALE=0.5, CAP=30.0, BLOCK=kernels.BLOCK)
assert made.asm["cubin"]
print("compiled")
"""  # noqa: E501


def python(*arguments, **variables):
    """Another process: Triton decides on its first import whether it interprets."""
    pytest.importorskip("triton")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_kernels_in_the_interpreter():
    cases = ("-m", "pytest", "tests/kernels/triton_cases.py", "-p", "no:cacheprovider")
    done = python(*cases, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """Triton brings its own assembler; the interpreter forgives what the compiler does not."""
    done = python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "compiled", done.stderr
