"""An 8B teacher and a 0.6B student, counted on tensors without numbers: memory and products."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import Counter, on_a_gpu
from kd_lightning.kernels import backends
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import Batch, ModelOutput
from tests.kernels.kit import even

NUMBER, VOCAB, STUDENT, TEACHER = 8 * 4096, 151_936, 1024, 4096
GIB = 2**30


def models():
    def side(width, learns):
        linear = nn.Linear(width, VOCAB, bias=False, dtype=torch.bfloat16).requires_grad_(learns)
        states = torch.empty(8, NUMBER // 8, width, dtype=torch.bfloat16, requires_grad=learns)
        return ModelOutput(states, LinearHead(linear, VOCAB))

    ids, weights = torch.empty(8, NUMBER // 8, dtype=torch.long), torch.empty(8, NUMBER // 8)
    row = torch.empty(8, dtype=torch.long)
    return side(STUDENT, True), side(TEACHER, False), Batch(ids, ids, ids, weights, row, row)


@pytest.fixture(params=["torch", "triton"])
def kernel(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from kd_lightning.kernels import triton_kernels

        monkeypatch.setattr(triton_kernels, "run", lambda *_: None)  # launches allocate nothing
    with backends.kernel(request.param):
        yield request.param


@pytest.mark.parametrize("losses", [
    {"kl": ForwardKL()}, {"jsd": JensenShannon()}, {"jsd": JensenShannon(), "ce": CrossEntropy()},
], ids=["kl", "jsd", "jsd and ce"])  # fmt: skip
def test_memory_and_products(losses, kernel):
    with on_a_gpu(), FakeTensorMode(), Counter() as counter:
        student, teacher, batch = models()
        given = counter.bytes
        assert given > 1.7 * GIB
        counter.flops = 0
        TokenSum(losses, student, teacher, batch).total(*even(losses))[0].backward()
    assert counter.flops == 2 * NUMBER * VOCAB * (3 * STUDENT + TEACHER)
    assert round(counter.flops / 1e12, 1) == 71.4
    assert counter.peak < 4.2 * GIB


def test_the_counter_counts():
    with FakeTensorMode(), Counter() as counter:
        x = torch.empty(10, 20)
        y = x @ torch.empty(20, 30)
        assert counter.bytes == 4 * (200 + 600 + 300) - 2400  # the second factor is gone
        assert counter.peak == 4 * (200 + 600 + 300)
        assert counter.flops == 2 * 10 * 20 * 30
        del x, y
        assert counter.bytes == 0
