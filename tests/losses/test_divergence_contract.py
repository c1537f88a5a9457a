"""What holds for every divergence; a new class is found by itself."""

import pytest
import torch

from kd_lightning.losses.base import token_sums
from kd_lightning.losses.kl import ForwardKL
from tests.losses.kit import (
    DIVERGENCES,
    GOLDEN,
    STOPPED,
    SYMMETRIC_IN_TOKENS,
    TOKEN_LOSSES,
    Linear,
    build,
    from_logits,
    one_row,
    pair,
    total,
    value,
)

every = pytest.mark.parametrize("cls", DIVERGENCES, ids=lambda c: c.__name__)


def golden(cls, z_s, z_t, temperature=1.0):
    y = one_row(*z_s.shape).targets[0]
    p, q = (z_t / temperature).softmax(-1), (z_s / temperature).softmax(-1)
    return GOLDEN[cls.__name__](p, q, y, q.detach())


def gradient(result, z):
    return torch.autograd.grad(result, z)[0]


def test_every_named_formula_belongs_to_a_class():
    assert set(GOLDEN) <= {c.__name__ for c in DIVERGENCES}


@every
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_equal_the_formula(cls, temperature):
    if cls.__name__ not in GOLDEN:
        pytest.skip("no formula in plain probabilities is written down for this class")
    z_s, z_t = pair()
    got = value(build(cls, temperature=temperature), z_s, z_t)
    want = golden(cls, z_s, z_t, temperature).sum()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(got, z_s), gradient(want, z_s), rtol=1e-8, atol=1e-11)


@every
def test_gradcheck_through_a_linear_head(cls):
    if cls.__name__ in STOPPED:
        pytest.skip("has a part without gradient; its gradient is compared with the formula")
    torch.manual_seed(0)
    head, other = Linear(3, 5, 5), Linear(4, 5, 5)
    hidden = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    teacher = from_logits(other(torch.randn(3, 4, dtype=torch.float64)).detach())
    loss, batch = build(cls), one_row(3, 5)
    weight = head.layer.weight.detach().clone().requires_grad_()

    def sums(hidden, weight):
        student = from_logits(hidden)

        class Head:
            vocab = 5

            def __call__(self, states):
                return states @ weight.T

        student.head = Head()
        return total(loss, student, teacher, batch)

    message = (
        f"the gradient of {cls.__name__} is not that of its value; if a part is meant to carry no "
        "gradient, add the class to STOPPED and its formula to GOLDEN in tests/losses/kit.py"
    )
    assert torch.autograd.gradcheck(sums, (hidden, weight)), message


@pytest.mark.parametrize("cls", [c for c in DIVERGENCES if c.__name__ in STOPPED])
def test_a_stopped_gradient_is_checked_by_a_formula(cls):
    assert cls.__name__ in GOLDEN


@every
def test_zero_with_zero_gradient_where_student_is_teacher(cls):
    for scale in (1.0, 30.0, 1e4):
        for dtype in (torch.float64, torch.float32):
            _, z_t = pair(scale=scale, dtype=dtype)
            z_s = z_t.clone().requires_grad_()
            got = value(build(cls), z_s, z_t)
            assert abs(got.item()) < 2e-5
            assert gradient(got, z_s).abs().max() < 1e-5  # and not NaN


@every
def test_positive_where_they_differ(cls):
    loss = build(cls)
    for seed in range(5):
        z_s, z_t = pair(rows=1, seed=seed)
        assert value(loss, z_s, z_t) > 1e-4


@every
def test_no_gradient_to_the_teacher(cls):
    z_s, z_t = pair()
    z_t.requires_grad_()
    value(build(cls), z_s, z_t).backward()
    assert z_t.grad is None
    assert z_s.grad.abs().sum() > 0


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_finite_at_logit_spread_of_ten_thousand(cls, dtype, temperature):
    z, _ = pair(rows=4, vocab=17, scale=1e4)
    z = z.detach()
    hot = torch.zeros_like(z).scatter(1, torch.arange(4)[:, None], 1e4)
    pairs = [(z, -z), (z, z.roll(1, -1)), (hot, z), (z, hot), (hot, hot.roll(1, -1)), (0 * z, hot)]
    loss = build(cls, temperature=temperature)
    for student, teacher in [*pairs, (hot, 0 * z), (z + 3e4, z - 3e4)]:
        z_s = student.to(dtype).requires_grad_()
        got = value(loss, z_s, teacher.to(dtype))
        assert got.isfinite()
        assert got > -1e-4
        assert gradient(got, z_s).isfinite().all()


@every
def test_half_precision_is_upcast_before_the_softmax(cls):
    z_s, z_t = pair(vocab=500, scale=3.0, dtype=torch.bfloat16)
    got = value(build(cls), z_s, z_t)
    assert got.dtype == torch.float32
    assert torch.equal(got, value(build(cls), z_s.float(), z_t.float()))
    close, _ = pair(vocab=500, scale=3.0, dtype=torch.bfloat16)  # nearly the teacher
    near = value(build(cls), close, close.detach() + 0.01 * z_t)
    assert near > -1e-6


def test_a_half_precision_softmax_would_show():
    z_s, z_t = pair(vocab=500, scale=3.0, dtype=torch.bfloat16)
    log_s, log_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
    wrong = (log_t.exp() * (log_t - log_s)).sum()
    right = value(ForwardKL(), z_s, z_t)
    assert abs(wrong.item() / right.item() - 1) > 1e-3


@every
def test_padding_rows_never_matter(cls):
    """37 rows against 40, of which both tokenizers know 35."""
    z_s, z_t = pair(vocab=40, scale=2.0)
    z_s = z_s.detach()[:, :37].clone().requires_grad_()
    got = value(build(cls), z_s, z_t, student=35, teacher=35)
    cut = z_s.detach()[:, :35].clone().requires_grad_()
    want = value(build(cls), cut, z_t[:, :35])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    slope = gradient(got, z_s)
    torch.testing.assert_close(slope[:, :35], gradient(want, cut))
    assert slope[:, 35:].eq(0).all()
    assert slope.sum(-1).abs().max() < 1e-9
    for padding in (1e4, -1e4, float("inf"), float("nan")):
        z_t[:, 35:] = padding
        assert torch.equal(value(build(cls), z_s, z_t, student=35, teacher=35), got)
    smaller = value(build(cls), z_s, z_t[:, :36], student=37, teacher=35)
    torch.testing.assert_close(smaller, got)


def test_padding_in_the_softmax_would_show():
    z_s, z_t = pair(vocab=40)
    right = value(ForwardKL(), z_s[:, :37], z_t, student=35, teacher=35)
    p, q = z_t.softmax(-1)[:, :35], z_s[:, :37].softmax(-1)[:, :35]  # cut, not renormalised
    assert abs((p * (p / q).log()).sum() - right) > 0.1


@every
def test_temperature_is_used_and_its_square_scales_value_and_gradient(cls):
    z_s, z_t = pair()
    one, three = value(build(cls), z_s, z_t), value(build(cls, temperature=3.0), z_s, z_t)
    assert abs(one - three) > 1e-3
    torch.testing.assert_close(three, value(build(cls), z_s / 3, z_t / 3))
    squared = value(build(cls, temperature=3.0, square_temperature=True), z_s, z_t)
    torch.testing.assert_close(squared, 9 * three)
    torch.testing.assert_close(gradient(squared, z_s), 9 * gradient(three, z_s))


@every
def test_weights_weigh_tokens(cls):
    z_s, z_t = pair()
    weights = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 3.0])
    loss, batch = build(cls), one_row(6, 9)
    tokens = torch.stack([_alone(loss, z_s, z_t, batch, n) for n in range(6)])
    got = value(loss, z_s, z_t, weights)
    torch.testing.assert_close(got, (weights * tokens).sum())
    counted = loss.count(one_row(6, 9, weights))
    assert list(counted) == [loss.name]
    assert counted[loss.name] == 6.5


def _alone(loss, z_s, z_t, batch, n):
    mask = torch.zeros(1, 6)
    mask[0, n] = 1.0
    batch.weights = mask
    return total(loss, from_logits(z_s), from_logits(z_t), batch)


@pytest.mark.parametrize("cls", TOKEN_LOSSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7, 100])
def test_chunks_change_nothing(cls, chunk):
    z_s, z_t = pair(rows=10)
    loss, batch = build(cls), one_row(10, 9)
    models = from_logits(z_s), from_logits(z_t)
    want = token_sums({"x": loss}, *models, batch)["x"]
    got = token_sums({"x": loss}, *models, batch, chunk=chunk)["x"]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, z_s), gradient(want, z_s))


@pytest.mark.parametrize("cls", SYMMETRIC_IN_TOKENS, ids=lambda c: c.__name__)
def test_the_order_of_the_vocabulary_does_not_matter(cls):
    z_s, z_t = pair()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        value(build(cls), z_s, z_t), value(build(cls), z_s[:, order], z_t[:, order])
    )


@every
def test_bad_temperature_is_refused(cls):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        build(cls, temperature=0.0)
