"""Half-precision inputs, autocast, and heads that are more than a product."""

import pytest
import torch
from torch import nn

from kd_lightning.kernels.projection import Multiplier, Projection
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import ModelOutput
from tests.kernels.kit import OURS, batch, by_hand, gradients, leaves, models
from tests.losses.kit import one_row

WIDTH, ROWS, NUMBER = 32, 2000, 64


def large(dtype, seed=0, bias=True):
    """A student and a teacher that agree in part, on one row of tokens, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = draw(1, NUMBER, WIDTH), 0.4 * draw(ROWS, WIDTH)
    sides = []
    for scale in (0.0, 0.3):
        linear = nn.Linear(WIDTH, ROWS, bias=bias, dtype=torch.float64)
        linear.weight.data = weight + scale * draw(ROWS, WIDTH)
        if bias:
            linear.bias.data = draw(ROWS)
        states = hidden + scale * draw(1, NUMBER, WIDTH)
        sides.append((states.to(dtype), linear.to(dtype)))
    (mine, linear), (other, teacher) = sides
    return (
        ModelOutput(mine.requires_grad_(), LinearHead(linear, ROWS)),
        ModelOutput(other, LinearHead(teacher.requires_grad_(False), ROWS, own_precision=True)),
        one_row(NUMBER, ROWS),
    )


def widened(student, teacher):
    """The same rounded numbers in float64."""
    made = []
    for model in (student, teacher):
        linear = nn.Linear(WIDTH, ROWS, bias=model.head.linear.bias is not None).double()
        linear.load_state_dict(model.head.linear.state_dict())
        made.append(ModelOutput(model.hidden.detach().double(), LinearHead(linear, ROWS)))
    made[0].hidden.requires_grad_()
    return made


def errors(got, want):
    return [((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize("loss", OURS, ids=lambda x: type(x).__name__)
def test_half_precision_inputs_against_float64(loss):
    student, teacher, rows = large(torch.bfloat16)
    losses = {"x": loss}
    counts = loss.count(rows)
    total = TokenSum(losses, student, teacher, rows, 10).total({"x": 1.0}, {"x": counts[loss.name]})
    total = total[0]
    got = gradients(total, student)
    assert total.dtype == torch.float32
    assert all(x.dtype == torch.bfloat16 for x in got)
    exact, other = widened(student, teacher)
    want = by_hand(losses, exact, other, rows) / NUMBER
    assert abs(total.item() / want.item() - 1) < 1e-5
    assert max(errors(got, gradients(want, exact))) < 0.003


def test_half_precision_logits_would_show():
    student, teacher, rows = large(torch.bfloat16)
    losses = {"x": JensenShannon()}
    got = gradients(by_hand(losses, student, teacher, rows), student)
    exact, other = widened(student, teacher)
    want = gradients(by_hand(losses, exact, other, rows), exact)
    assert max(errors(got, want)) > 0.006


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_autocast_rounds_factors_and_nothing_else(dtype, size):
    student, teacher, rows = large(torch.float32)
    losses = {"kl": ForwardKL(2.0, True), "r": ReverseKL()}
    how = {"kl": size, "r": 2 * size}, dict.fromkeys(losses, torch.ones(()))
    made = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype, enabled=enabled):
            total = TokenSum(losses, student, teacher, rows, 10).total(*how)[0]
            terms = TokenSum(losses, student, teacher, rows, 10).terms().values()
        separate = sum(f * t for f, t in zip(how[0].values(), terms, strict=True))
        made.append((total, gradients(total, student)))
        assert all(x.dtype == torch.float32 for x in made[-1][1])
        assert max(errors(gradients(separate, student), made[-1][1])) < 1e-5
    (rounded, slopes), (exact, want) = made
    assert 1e-7 < abs(rounded.item() / exact.item() - 1) < 1e-2
    assert max(errors(slopes, want)) < 0.02
    cut = ModelOutput(student.hidden.detach().to(dtype).float().requires_grad_(), student.head)
    student.head.linear.weight.data = student.head.linear.weight.data.to(dtype).float()
    total = TokenSum(losses, cut, teacher, rows, 10).total(*how)[0]
    torch.testing.assert_close(total, rounded, rtol=1e-5, atol=0)
    assert max(errors(slopes, gradients(total, cut))) < 1e-5


def test_the_teacher_keeps_its_own_precision_under_autocast():
    """Student and teacher alike in float32: what is left is the student's rounding alone."""
    linear = nn.Linear(8, 30)
    with torch.autocast("cpu", torch.bfloat16):
        assert Multiplier(Projection.of(linear)).dtype == torch.bfloat16
        assert Multiplier(Projection.of(linear, own_precision=True)).dtype == torch.float32
        assert Multiplier(Projection.of(linear.double())).dtype == torch.float64


class Adapted(nn.Linear):
    """More than its weight and bias."""

    def forward(self, states):
        return super().forward(states) * 2


def hooked():
    linear = nn.Linear(4, 11, dtype=torch.float64)
    linear.register_forward_hook(lambda module, args, out: out * 2)
    return linear


def replaced():
    linear = nn.Linear(4, 11, dtype=torch.float64)
    plain = linear.forward
    linear.forward = lambda states: plain(states) * 2
    return linear


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 11, dtype=torch.float64))


@pytest.mark.parametrize(
    "linear",
    [Adapted(4, 11, dtype=torch.float64), hooked(), replaced(), parametrized()],
    ids=["subclass", "hook", "replaced forward", "parametrization"],
)
def test_a_head_that_is_more_than_a_product_is_called(linear):
    student, teacher = models()
    student.head = LinearHead(linear, 11)
    losses = {"kl": ForwardKL(), "ce": CrossEntropy()}
    made = TokenSum(losses, student, teacher, batch(), 4)
    assert made.job() == (None, None)
    found = torch.stack(list(made.terms().values()))
    want = by_hand(losses, student, teacher, batch())
    torch.testing.assert_close(found, want)
    total, terms = made.total({"kl": 0.5, "ce": 2.0}, dict.fromkeys(losses, torch.ones(())))
    torch.testing.assert_close(total, 0.5 * want[0] + 2 * want[1])
    assert not terms["kl"].requires_grad
    wanted = [student.hidden, *linear.parameters()]
    for a, b in zip(
        torch.autograd.grad(total, wanted),
        torch.autograd.grad(0.5 * want[0] + 2 * want[1], wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_an_adapted_teacher_is_called_too():
    student, teacher = models()
    teacher.head = LinearHead(Adapted(6, 13, dtype=torch.float64), 11)
    made = TokenSum({"kl": ForwardKL()}, student, teacher, batch(), 4)
    assert made.job() == (None, None)
    made.terms()["kl"].backward()
    assert all(x.grad is not None for x in leaves(student))


def test_a_sharded_weight_is_called():
    from torch.distributed.tensor import DTensor

    class Shard(nn.Parameter):
        __tensor_flatten__ = DTensor.__tensor_flatten__  # made of other tensors, as a DTensor is

    linear = nn.Linear(4, 11)
    assert Projection.of(linear) is not None
    linear.weight = Shard(linear.weight.detach())
    assert Projection.of(linear) is None


def test_a_tied_head_adds_to_the_embedding():
    student, teacher = models()
    embedding = nn.Embedding(11, 4, dtype=torch.float64)
    embedding.weight = student.head.linear.weight
    student.hidden = embedding(batch().input_ids)
    want = by_hand({"x": ForwardKL()}, student, teacher, batch())
    want = torch.autograd.grad(want, embedding.weight, retain_graph=True)[0]
    got = TokenSum({"x": ForwardKL()}, student, teacher, batch(), 4).terms()["x"]
    torch.testing.assert_close(torch.autograd.grad(got, embedding.weight)[0], want)
