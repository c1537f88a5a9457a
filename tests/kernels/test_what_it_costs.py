"""Nothing of N x V elements, every head once, no gradient that nobody asked for."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.losses.base import Loss
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.losses.weighted import Term, Weighted
from tests.kernels.kit import COUNTED, EVERY, batch, by_hand, even, leaves, models

STUDENT, TEACHER = 4 * 11, 6 * 13
"""Size of the heads' weights."""


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes, but for inner loops."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out)
                 if isinstance(x, torch.Tensor)]  # fmt: skip
        self.elements = max([self.elements, *sizes])
        return out


every = pytest.mark.parametrize("loss", EVERY, ids=lambda x: type(x).__name__)


@every
@pytest.mark.parametrize("known", [False, True], ids=["recomputed", "known factors"])
def test_no_tensor_of_all_tokens_by_the_vocabulary(loss, known):
    student, teacher = models(vocab=300, bias=True, softcap=3.0)
    losses = {"x": loss, "kl": ForwardKL()}
    with Largest() as seen:
        made = TokenSum(losses, student, teacher, batch(), chunk=2)
        if known:
            made.total(*even(losses))[0].backward()
        else:
            sum(made.terms().values()).backward()
    assert seen.elements == 6 * 302  # the teacher's weight, which was there before
    with Largest() as control:
        by_hand(losses, student, teacher, batch()).sum().backward()
    assert control.elements >= COUNTED * 300


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@every
def test_each_head_is_projected_once_and_gradients_are_two_products(loss):
    student, teacher = models(softcap=3.0)
    losses = {"x": loss, "kl": ForwardKL(2.0)}
    forward = 2 * COUNTED * (STUDENT + TEACHER)
    both = 2 * COUNTED * 2 * STUDENT

    def known():
        TokenSum(losses, student, teacher, batch(), 5).total(*even(losses))[0].backward()

    def unknown():
        sum(TokenSum(losses, student, teacher, batch(), 5).terms().values()).backward()

    def step_by_step():
        TokenSum(losses, student, teacher, batch(), 5).step_by_step().sum().backward()

    assert flops(known) == forward + both
    assert flops(unknown) == flops(step_by_step) == 2 * forward + both
    student.hidden = student.hidden.detach()
    assert flops(known) == forward + both / 2
    student.head.linear.requires_grad_(False)
    student.hidden.requires_grad_()
    assert flops(known) == forward + both / 2
    with torch.no_grad():
        found = TokenSum(losses, student, teacher, batch(), 5).total(*even(losses))[0]
        assert (
            flops(lambda: TokenSum(losses, student, teacher, batch(), 5).total(*even(losses)))
            == forward
        )
    assert not found.requires_grad


def test_a_frozen_head_gets_no_gradient():
    student, teacher = models(bias=True)
    whole = TokenSum({"x": ForwardKL()}, student, teacher, batch(), 5).terms()["x"]
    want = torch.autograd.grad(whole, student.hidden)[0]
    student.head.linear.requires_grad_(False)
    TokenSum({"x": ForwardKL()}, student, teacher, batch(), 5).terms()["x"].backward()
    torch.testing.assert_close(student.hidden.grad, want)
    assert all(x.grad is None for x in student.head.linear.parameters())


def test_without_gradient_no_slope_is_computed(monkeypatch):
    student, teacher = models()
    loss = ForwardKL()
    want = TokenSum({"x": loss}, student, teacher, batch(), 5).terms()["x"]
    monkeypatch.setattr(loss, "with_slope", None)
    with torch.no_grad():
        got = TokenSum({"x": loss}, student, teacher, batch(), 5).terms()["x"]
    torch.testing.assert_close(got, want.detach())
    with torch.inference_mode():
        got = TokenSum({"x": loss}, student, teacher, batch(), 5).terms()["x"]
    torch.testing.assert_close(got, want.detach())


def test_a_weighted_loss_over_known_counts_projects_once():
    """The path of a training step: terms with unlike counts, one within another."""
    inner = Weighted({"kl": Term(ForwardKL(), 0.5)})
    loss = Weighted({
        "ce": Term(CrossEntropy(), 0.3), "soft": Term(ForwardKL(2.0), 0.7), "in": Term(inner, 2.0)
    })  # fmt: skip
    student, teacher = models()
    counts = loss.count(batch())
    assert len({count.item() for count in counts.values()}) == 2
    made = []
    for objective in (loss.objective, lambda *x: Loss.objective(loss, *x)):
        total, output = objective(student, teacher, batch(), counts)
        made.append([total, *output.terms.values(), *torch.autograd.grad(total, leaves(student))])
        assert list(output.terms) == list(counts)
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    once = 2 * COUNTED * (STUDENT + TEACHER) + 4 * COUNTED * STUDENT
    step = lambda: loss.objective(student, teacher, batch(), counts)[0].backward()  # noqa: E731
    assert flops(step) == once


@every
def test_nothing_to_learn_is_exactly_zero_with_a_graph(loss):
    for dtype in (torch.float64, torch.bfloat16):
        student, teacher = models(bias=True, dtype=dtype)
        masked = batch().replace(weights=torch.zeros(3, 6))
        made = TokenSum({"x": loss, "kl": ForwardKL()}, student, teacher, masked)
        for total in (sum(made.terms().values()), made.total(*even(made.losses))[0]):
            assert total == 0
            (1e9 * total).backward()
            for leaf in leaves(student):
                assert leaf.grad.eq(0).all() and leaf.grad.dtype == dtype
                leaf.grad = None
