"""Fused equals step by step, value and gradients, for every loss and every head."""

import pytest
import torch

from kd_lightning.kernels import linear_loss
from kd_lightning.losses.alpha import AlphaDivergence
from kd_lightning.losses.alpha_beta import AlphaBetaDivergence
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL, SymmetricKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.skew import SkewForwardKL, SkewReverseKL
from kd_lightning.losses.tokens import TokenSum
from tests.kernels.kit import (
    COUNTED,
    EVERY,
    HEADS,
    Changed,
    batch,
    by_hand,
    close,
    fused,
    gradients,
    leaves,
    models,
)
from tests.losses.kit import STOPPED, build

every = pytest.mark.parametrize("loss", EVERY, ids=lambda x: type(x).__name__)
heads = pytest.mark.parametrize("how", HEADS.values(), ids=HEADS)


def pair(loss):
    return {"x": loss}


@every
@heads
def test_value_and_gradients(loss, how):
    student, teacher = models(**how)
    want = by_hand(pair(loss), student, teacher, batch())
    slopes = gradients(want, student)
    assert all(slope.abs().max() > 1e-3 for slope in slopes)
    assert len(slopes) == 3 if "bias" in how else 2
    for chunk in (1, 4, 5, COUNTED, 100, None):
        got = fused(pair(loss), student, teacher, batch(), chunk)
        close([got], [want])
        close(gradients(got, student), slopes)


EDGES = [
    AlphaDivergence(0.0), AlphaDivergence(1.0), AlphaDivergence(0.3), AlphaBetaDivergence(0.0, 0.8),
    AlphaBetaDivergence(0.6, 0.0), JensenShannon(0.1), JensenShannon(0.9), SkewForwardKL(0.0),
    SkewForwardKL(0.6), SkewReverseKL(0.0), SkewReverseKL(0.6), SymmetricKL(0.2),
]  # fmt: skip


@pytest.mark.parametrize("loss", EDGES, ids=lambda x: f"{type(x).__name__}")
def test_the_parameters_are_in_the_slope(loss):
    student, teacher = models()
    want = by_hand(pair(loss), student, teacher, batch())
    got = fused(pair(loss), student, teacher, batch(), 5)
    close([got], [want])
    close(gradients(got, student), gradients(want, student))


@every
@pytest.mark.parametrize("squared", [False, True])
def test_temperature_and_its_square(loss, squared):
    if not hasattr(loss, "temperature"):
        pytest.skip("has no temperature")
    loss = type(loss)(temperature=2.5, square_temperature=squared)
    student, teacher = models(rows=11, vocab=9, bias=True)
    want = by_hand(pair(loss), student, teacher, batch())
    got = fused(pair(loss), student, teacher, batch(), 5)
    close([got], [want])
    close(gradients(got, student), gradients(want, student))


def terms():
    return {
        "ce": CrossEntropy(),
        "kl": ForwardKL(2.0, True),
        "jsd": JensenShannon(0.3),
        "changed": Changed(),
    }


@heads
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_any_upstream_gradient_of_several_terms(how, chunk):
    """Terms that count different tokens; what arrives is known in the backward pass only."""
    student, teacher = models(**how)
    upstream = torch.tensor([0.3, -2.0, 1e-4, 5.0], dtype=torch.float64)
    want = by_hand(terms(), student, teacher, batch())
    got = fused(terms(), student, teacher, batch(), chunk)
    close([got], [want])
    for weights in (upstream, upstream.flip(0), torch.zeros_like(upstream)):
        close(
            torch.autograd.grad(got, leaves(student), weights, retain_graph=True),
            torch.autograd.grad(want, leaves(student), weights, retain_graph=True),
        )
    close(gradients(got.square().sum(), student), gradients(want.square().sum(), student))


@heads
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_factors_that_are_known_beforehand(how, chunk):
    student, teacher = models(**how)
    factors = dict(zip(terms(), [0.3, -2.0, 1e-4, 0.0], strict=True))
    counts = dict(zip(terms(), torch.tensor([3.0, 7.0, 11.0, 5.0]), strict=True))
    sums = by_hand(terms(), student, teacher, batch())
    each = [f / n for f, n in zip(factors.values(), counts.values(), strict=True)]
    want = (sums * torch.tensor(each, dtype=torch.float64)).sum()
    total, found = TokenSum(terms(), student, teacher, batch(), chunk).total(factors, counts)
    close([total, torch.stack(list(found.values()))], [want, sums.detach()], 1e-7)
    assert not any(x.requires_grad for x in found.values())
    for factor in (1.0, 7.0, 1.0):  # twice the same graph
        got = torch.autograd.grad(factor * total, leaves(student), retain_graph=True)
        wanted = torch.autograd.grad(factor * want, leaves(student), retain_graph=True)
        close(got, wanted, 1e-7)


class Weigh(TokenLoss):
    """A loss with a parameter of its own."""

    name = "weigh"

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def per_row(self, tokens):
        return self.factor * tokens.nll()


def test_a_loss_that_learns_gets_its_gradient():
    student, teacher = models()
    loss = Weigh()
    sums = TokenSum(pair(loss), student, teacher, batch(), 4).terms()["x"]
    sums.backward()
    torch.testing.assert_close(loss.factor.grad, sums.detach() / 2)


@pytest.mark.parametrize("chunk", [2, 100])
def test_tokens_that_differ_in_what_arrives(chunk):
    """The kernel's own interface: each token's value may enter whatever comes after."""
    student, teacher = models(bias=True, softcap=3.0)
    job, plain = TokenSum(terms(), student, teacher, batch(), chunk).job()
    states = student.hidden.flatten(0, 1)[:COUNTED].detach().requires_grad_()
    values = linear_loss.values(job, states, plain.weight, plain.bias)
    got = torch.autograd.grad(values.square().log1p().sum(), [states, plain.weight, plain.bias])
    logits_s, logits_t = student.head(states), teacher.head(job.hidden_t.clone()).detach()
    found = job.tile(logits_s, logits_t, slice(0, COUNTED), False)
    want = torch.stack([value for value, _ in found])
    close([values], [want])
    wanted = [states, plain.weight, plain.bias]
    close(got, torch.autograd.grad(want.square().log1p().sum(), wanted))


@pytest.mark.parametrize("loss", EVERY, ids=lambda x: type(x).__name__)
def test_gradcheck(loss):
    if type(loss).__name__ in STOPPED:
        pytest.skip("has a part without gradient: finite differences of the value are not its own")
    student, teacher = models(bias=True, scale=1.3, softcap=3.0)
    losses = {"x": loss, "r": ReverseKL()}
    factors, counts = {"x": 0.7, "r": 1.1}, dict.fromkeys("xr", torch.tensor(3.0))
    assert TokenSum(losses, student, teacher, batch()).job()[0] is not None

    def total(*_):  # the leaves are moved in place
        return TokenSum(losses, student, teacher, batch(), 5).total(factors, counts)[0]

    def separate(*_):
        return tuple(TokenSum(losses, student, teacher, batch(), 5).terms().values())

    assert torch.autograd.gradcheck(total, leaves(student), fast_mode=True)
    assert torch.autograd.gradcheck(separate, leaves(student), fast_mode=True)


@every
def test_student_is_teacher(loss):
    """No gradient where there is nothing to learn, also far out."""
    if loss.name in ("ce", "label", "changed_row", "entropy"):
        pytest.skip("compares with the text, or with nobody")
    for scale in (1.0, 30.0, 1e3):
        for dtype in (torch.float64, torch.float32):
            student, _ = models(dtype=dtype)
            student.head.linear.weight.data.mul_(scale)
            same = type(student)(student.hidden.detach(), student.head)
            got = fused(pair(loss), student, same, batch(), 5)
            assert abs(got.item()) < 2e-5
            for slope in gradients(got, student):
                assert slope.abs().max() < 1e-4 * scale


def test_contract_losses_are_all_here():
    assert len({type(x) for x in EVERY}) == len(EVERY) >= 14
    assert build(ForwardKL).name in {x.name for x in EVERY}
