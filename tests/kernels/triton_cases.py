"""Triton's kernels equal autograd: run by `test_triton.py` in a process of the interpreter's own.

`TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_cases.py`
"""

import dataclasses

import pytest
import torch

from kd_lightning.kernels import backends, linear_loss, triton_kernels
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import ModelOutput
from tests.kernels.kit import COUNTED, EVERY, HEADS, batch, by_hand, close, even, gradients, models
from tests.kernels.test_equals_autograd import EDGES


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Several blocks for a row, the last one not full."""
    monkeypatch.setattr(triton_kernels, "BLOCK", 8)
    with backends.kernel("triton"):
        yield


def fused(losses, student, teacher, rows, chunk=5):
    made = TokenSum(losses, student, teacher, rows, chunk)
    assert made.job()[0].back_end == "triton"
    return torch.stack(list(made.terms().values()))


STATED = [loss for loss in EVERY if loss.formula() is not None]


@pytest.mark.parametrize("loss", [*STATED, *EDGES], ids=lambda x: type(x).__name__)
def test_value_and_gradients(loss):
    student, teacher = models(**HEADS["padded"])
    want = by_hand({"x": loss}, student, teacher, batch())
    got = fused({"x": loss}, student, teacher, batch())
    close([got], [want])
    close(gradients(got, student), gradients(want, student))


@pytest.mark.parametrize("name", ["everything", "padded"])
def test_heads_and_several_terms(name, monkeypatch):
    """Temperatures of their own, one squared; terms that count different tokens."""
    monkeypatch.setattr(triton_kernels, "BLOCK", 16)
    student, teacher = models(**HEADS[name])
    losses = {"ce": CrossEntropy(), "kl": ForwardKL(2.0, True), "jsd": JensenShannon(0.3, 1.5)}
    factors = dict(zip(losses, (0.3, -2.0, 5.0), strict=True))
    want = by_hand(losses, student, teacher, batch())
    mixed = (torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64) * want).sum()
    made = TokenSum(losses, student, teacher, batch(), 4)
    total, terms = made.total(factors, even(losses)[1])
    close([total, torch.stack(list(terms.values()))], [mixed, want.detach()])
    close(gradients(total, student), gradients(mixed, student))


def test_without_gradient_and_with_a_frozen_head():
    student, teacher = models(bias=True)
    losses = {"kl": ForwardKL()}
    want = by_hand(losses, student, teacher, batch())
    slope = torch.autograd.grad(want, student.hidden, retain_graph=True)
    with torch.no_grad():
        close([fused(losses, student, teacher, batch())], [want.detach()])
    student.head.linear.requires_grad_(False)
    got = fused(losses, student, teacher, batch())
    close(torch.autograd.grad(got, student.hidden), slope)
    assert fused(losses, student, teacher, batch().replace(weights=torch.zeros(3, 6))).item() == 0


def test_tokens_that_differ_in_what_arrives():
    student, teacher = models(softcap=3.0)
    losses = {"jsd": JensenShannon()}
    job, plain = TokenSum(losses, student, teacher, batch(), 5).job()
    states = student.hidden.flatten(0, 1)[:COUNTED].detach().requires_grad_()
    made = []
    for back_end in ("triton", "torch"):
        same = dataclasses.replace(job, back_end=back_end)
        values = linear_loss.values(same, states, plain.weight, plain.bias)
        slopes = torch.autograd.grad(values.square().log1p().sum(), [states, plain.weight])
        made.append((values, *slopes))
    close(*made)


@pytest.mark.parametrize("loss", STATED, ids=lambda x: type(x).__name__)
def test_far_out_in_float32(loss):
    """Where most probabilities are 0, as near to float64 as torch's own operations are."""
    student, teacher = models(dtype=torch.float32)
    exact, other = models()
    with torch.no_grad():
        student.head.linear.weight.mul_(100)
        exact.head.linear.weight.copy_(student.head.linear.weight)
        exact.hidden.copy_(student.hidden)
    other = ModelOutput(teacher.hidden.double(), other.head)
    other.head.linear.weight.data = teacher.head.linear.weight.double()
    want = by_hand({"x": loss}, exact, other, batch())
    want = [want, *gradients(want, exact)]
    errors = {}
    for name in ("torch", "triton"):
        with backends.kernel(name):
            job = TokenSum({"x": loss}, student, teacher, batch(), COUNTED)
            total = job.total(*even({"x": loss}))[0][None]
        found = [total, *gradients(total, student)]
        pairs = zip(found, want, strict=True)
        errors[name] = [((a - b).norm() / (1e-3 + b.norm())).item() for a, b in pairs]
    for mine, torchs in zip(errors["triton"], errors["torch"], strict=True):
        assert mine < 1e-6 + 10 * torchs < 0.02


@pytest.mark.parametrize("loss", STATED, ids=lambda x: type(x).__name__)
def test_student_is_teacher(loss):
    if loss.name == "ce":
        pytest.skip("compares with the text")
    student, _ = models(dtype=torch.float32)
    same = type(student)(student.hidden.detach(), student.head)
    got = fused({"x": loss}, student, same, batch(), COUNTED)
    assert abs(got.item()) < 2e-5
    assert all(slope.abs().max() < 1e-4 for slope in gradients(got, student))


def test_the_gradient_is_written_as_the_next_product_takes_it():
    """Half precision goes to a tensor of its own, rounded from the same float32 numbers."""
    student, teacher = torch.randn(5, 23), torch.randn(5, 25)
    labels, weights = torch.randint(0, 19, (5,)), torch.rand(2, 5)
    formulas = (ForwardKL(2.0).formula(), CrossEntropy().formula())
    half, values = torch.empty(5, 23, dtype=torch.bfloat16), torch.empty(2, 5)
    before = student.clone()
    triton_kernels.run(formulas, student, teacher, labels, 19, values, weights, half, 1.7, 3.0)
    assert student.equal(before)
    triton_kernels.run(formulas, student, teacher, labels, 19, values, weights, student, 1.7, 3.0)
    assert not student.equal(before)
    torch.testing.assert_close(half.float(), student, rtol=2**-7, atol=0)  # the interpreter cuts


def test_every_token_is_shown_once_before_it_is_overwritten():
    student, teacher = models(bias=True)
    made = TokenSum({"kl": ForwardKL()}, student, teacher, batch(), 5)
    job, plain = made.job()
    seen = []
    job = dataclasses.replace(job, watch=lambda s, t, there: seen.append((s.clone(), t, there)))
    ways = (linear_loss.values, lambda *x: linear_loss.total(*x, torch.ones(1, COUNTED))[0])
    for way in ways:
        states = made.states()
        way(job, states, plain.weight, plain.bias).sum().backward()
        shown = [i for *_, there in seen for i in range(there.start, there.stop)]
        assert shown == list(range(COUNTED))
        close([torch.cat([s for s, *_ in seen])], [student.head(states).detach()])
        seen.clear()
