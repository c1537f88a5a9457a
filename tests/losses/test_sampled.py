"""Targets drawn from the teacher: right on average, and only where that is true."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses import CrossEntropy, ForwardKL, JensenShannon
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import SparseTargets
from tests.kernels.kit import batch, by_hand, close, even, fused, gradients, models
from tests.losses.few import drawn, only, sampled
from tests.losses.kit import from_logits, one_row, pair, total

ROUNDS = 20_000


def deviation(loss, z_s, z_t, **how):
    """How far the mean gradient over many draws is from the whole one, in standard errors."""
    z_s, z_t = z_s.expand(ROUNDS, -1).clone().detach().requires_grad_(), z_t.expand(ROUNDS, -1)
    rows = one_row(*z_s.shape)
    few, live = only(drawn(z_t, 0, **how)), from_logits(z_t)
    got, want = (
        torch.autograd.grad(total(loss, from_logits(z_s), teacher, rows), z_s)[0]
        for teacher in (few, live)
    )
    assert got.std(0).min() > 1e-3
    return ((got - want).mean(0).abs() / (got.std(0) / ROUNDS**0.5)).max()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("proposal", [1.0, 0.5])
def test_the_mean_over_draws_is_the_whole(proposal, temperature):
    z_s, z_t = pair(rows=1, vocab=8, scale=1.0)
    loss = ForwardKL(temperature)
    assert deviation(loss, z_s, z_t, proposal=proposal, temperature=temperature) < 4


def test_shares_divided_by_their_sum_would_show():
    z_s, z_t = pair(rows=1, vocab=8, scale=1.0)
    assert deviation(ForwardKL(), z_s, z_t, proposal=0.5, biased=True) > 8


def test_the_likeliest_alone_would_show():
    """As many ids as are drawn, and no tail: biased, whatever the number of rounds."""
    z_s, z_t = pair(rows=2, vocab=8, scale=1.0)
    rows = one_row(2, 8)
    top = z_t.topk(3)
    sparse = drawn(z_t, 0)
    sparse = SparseTargets(
        top.indices, top.values.log_softmax(-1), sparse.lse, sparse.label, sparse.entropy, 8,
        "sampled",
    )  # fmt: skip
    got = total(ForwardKL(), from_logits(z_s), only(sparse), rows)
    want = total(ForwardKL(), from_logits(z_s), from_logits(z_t), rows)
    slopes = [torch.autograd.grad(x, z_s)[0] for x in (got, want)]
    assert (slopes[0] - slopes[1]).abs().max() > 0.05


@pytest.mark.parametrize("proposal", [1.0, 0.5])
def test_value_and_gradient_in_plain_words(proposal):
    """-sum share log q - H, and q times the sum of shares minus the shares."""
    z_s, z_t = pair(rows=5)
    sparse = drawn(z_t, 3, proposal)
    rows, share = one_row(5, 9), sparse.logits.exp()
    got = total(ForwardKL(), from_logits(z_s), only(sparse), rows)
    want = -(share * z_s.log_softmax(-1)).sum() - sparse.entropy.sum()
    torch.testing.assert_close(got, want)
    slope = z_s.softmax(-1) * share.sum(-1, keepdim=True) - share
    torch.testing.assert_close(torch.autograd.grad(got, z_s)[0], slope)


def test_fused_equals_step_by_step_beside_cross_entropy():
    student, teacher = models(bias=True, softcap=3.0)
    few = sampled(teacher)
    losses = {"ce": CrossEntropy(), "kl": ForwardKL(1.0, True)}
    want = by_hand(losses, student, few, batch())
    slopes = gradients(want.sum(), student)
    for chunk in (1, 5, None):
        got = fused(losses, student, few, batch(), chunk)
        close([got], [want])
        close(gradients(got.sum(), student), slopes)
    total_, _ = TokenSum(losses, student, few, batch()).total(*even(losses))
    close(gradients(total_, student), slopes)


def test_a_loss_that_samples_would_bias_is_refused():
    student, teacher = models()
    few = sampled(teacher)
    with pytest.raises(KDError, match="JensenShannon is not linear"):
        fused({"x": JensenShannon()}, student, few, batch())
    with pytest.raises(KDError, match=r"temperature 2\.0, its stored targets hold 1\.0"):
        fused({"x": ForwardKL(2.0)}, student, few, batch())


def test_a_student_that_knows_fewer_ids_is_refused():
    student, teacher = models()
    few = sampled(teacher)
    student.head.vocab = 9
    with pytest.raises(KDError, match="over 11 ids, the student knows 9"):
        fused({"x": ForwardKL()}, student, few, batch())
