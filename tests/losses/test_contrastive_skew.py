"""DistiLLM-2: an alpha for each answer, from how far the models are on its words."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.kernels import backends
from kd_lightning.losses.base import stated
from kd_lightning.losses.contrastive_skew import ContrastiveSkew
from kd_lightning.losses.skew import SkewForwardKL, SkewReverseKL
from kd_lightning.models.heads import LinearHead
from kd_lightning.schedules import Linear
from kd_lightning.types import IGNORE, ModelOutput, Progress, Source
from tests.losses.few import only, stored
from tests.losses.kit import Toy, four_rows, kl

GAPS = (0.05, 0.01)
"""Mean differences at which alphas lie between the bounds, with a skew of 0.5."""


def models():
    return Toy(0), Toy(1).requires_grad_(False)


def known(gaps=GAPS, **more):
    loss = ContrastiveSkew(**{"skew": 0.5, **more})
    loss.gap.copy_(torch.tensor(gaps))
    return loss


def probabilities(model, batch):
    """Of all tokens at each counted place, row by row."""
    logits = model(batch).logits
    return [row[where].softmax(-1) for row, where in zip(logits, spoken(batch), strict=True)]


def spoken(batch):
    return batch.targets != IGNORE


def differences(student, teacher, batch):
    """Geometric mean probability of each answer's words: the teacher's less the student's."""
    found = []
    rows = zip(*(probabilities(m, batch) for m in (teacher, student)), batch.targets, strict=True)
    for p, q, targets in rows:
        words = targets[targets != IGNORE, None]
        p, q = p.detach(), q.detach()
        found.append(
            float(p.gather(1, words).log().mean().exp() - q.gather(1, words).log().mean().exp())
        )
    return found


def by_hand(student, teacher, batch, gaps, beta, skew=0.5, least=0.01, sequence=True):
    """The published formula in plain probabilities; counts of answers or of words."""
    sums, numbers = [0.0, 0.0], [0.0, 0.0]
    alphas = []
    apart = differences(student, teacher, batch)
    rows = zip(*(probabilities(m, batch) for m in (teacher, student)), strict=True)
    for i, (p, q) in enumerate(rows):
        own = int(batch.source[i] == Source.STUDENT)
        difference = -apart[i] if own else apart[i]
        alpha = least
        if difference > 0:
            alpha = min(skew, max(least, 1 - (1 - skew) * gaps[own] / difference))
        alphas.append(alpha)
        each = kl(q, (1 - alpha) * p + alpha * q) if own else kl(p, alpha * p + (1 - alpha) * q)
        weights = batch.weights[i][batch.targets[i] != IGNORE].double()
        if sequence:
            weights = weights / weights.sum()
        sums[own] = sums[own] + (weights * each).sum()
        numbers[own] += float(weights.sum())
    value = (2 - beta) * sums[0] / numbers[0] + beta * sums[1] / numbers[1]
    return value, alphas


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_value_and_gradient_are_the_formulas(sequence, fused):
    student, teacher = models()
    batch = four_rows()
    loss = known(balance=1.3, normalise="sequence" if sequence else "token")
    want, alphas = by_hand(student, teacher, batch, loss.gap.tolist(), 1.3, sequence=sequence)
    assert alphas[0] == pytest.approx(0.2577, abs=1e-3) and alphas[3] == pytest.approx(
        0.352, abs=1e-3
    )
    assert alphas[1] == alphas[2] == 0.01
    outputs = [student(batch), teacher(batch)]
    if fused:
        outputs = [
            ModelOutput(out.hidden, LinearHead(model.head.layer, 11))
            for out, model in zip(outputs, (student, teacher), strict=True)
        ]
        assert all(out.head.projection() is not None for out in outputs)
    got, output = loss.objective(*outputs, batch, loss.count(batch))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(sum(v / loss.count(batch)[k] for k, v in output.terms.items()), got,
                               check_dtype=False)  # fmt: skip
    leaves = list(student.parameters())
    for a, b in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_an_alpha_makes_the_first_order_loss_that_of_the_mean_answer():
    """(1 - alpha)(p - q) = (1 - alpha_0) m between the bounds."""
    loss = known(gaps=(0.2, 0.1), skew=0.5, least=0.01)
    difference = torch.tensor([0.15, 0.07, 0.3, 0.9, 0.05, -0.4, 0.0], dtype=torch.float64)
    for kind in (0, 1):
        mean = loss.gap[kind]
        alpha = loss._alpha(difference, mean)
        product = (1 - alpha) * difference
        between = (alpha > 0.01) & (alpha < 0.5)
        assert between.any()
        torch.testing.assert_close(product[between], 0.5 * mean.double().expand(int(between.sum())))
        assert alpha[3] == 0.5, "a hard answer has the largest"
        assert (alpha[-2:] == 0.01).all(), "one that the student knows has the least"


def test_the_mean_is_a_moving_average_however_a_step_is_split_and_comes_back():
    student, teacher = models()
    batch = four_rows()
    apart = differences(student, teacher, batch)
    own = batch.source == Source.STUDENT
    first = [float(torch.tensor(apart)[~own].mean()), float(-torch.tensor(apart)[own].mean())]

    def after(split, loss=None):
        loss = loss or ContrastiveSkew(momentum=0.75)
        loss.begin_step(Progress(0, 10))
        for part in batch.split(rows=split):
            loss.objective(student(part), teacher(part), part, loss.count(batch))
        loss.end_step({})
        return loss

    whole = after(None)
    assert whole.gap.tolist() == pytest.approx(first, rel=1e-5)
    for rows in (1, 2, 3):
        torch.testing.assert_close(after(rows).gap, whole.gap)
    was = whole.gap.clone()
    whole.gap.copy_(torch.tensor([1.0, 2.0]))
    again = after(None, whole).gap
    torch.testing.assert_close(again, 0.75 * torch.tensor([1.0, 2.0]) + 0.25 * was)
    other = ContrastiveSkew()
    other.load_state_dict(whole.state_dict())
    assert torch.equal(other.gap, again)


def test_nothing_is_remembered_of_validation_or_of_a_step_that_was_left_out():
    student, teacher = models()
    batch = four_rows()
    loss = ContrastiveSkew()
    loss.eval()
    loss.objective(student(batch), teacher(batch), batch, loss.count(batch))
    loss.end_step({})
    assert loss.gap.isnan().all()
    loss.train()
    loss.objective(student(batch), teacher(batch), batch, loss.count(batch))
    loss.begin_step(Progress(1, 10))  # gradients were not finite: no end_step
    loss.end_step({})
    assert loss.gap.isnan().all()


def test_the_first_step_is_the_constant_skew_and_own_words_count_more_and_more():
    student, teacher = models()
    batch = four_rows()
    loss = ContrastiveSkew(balance=Linear(1.0, 1.5, 0.5), normalise="token")
    parts = []
    for each, own in ((SkewForwardKL(0.1), False), (SkewReverseKL(0.1), True)):
        keep = ((batch.source == Source.STUDENT) == own)[:, None]
        few = batch.replace(targets=batch.targets.masked_fill(~keep, IGNORE),
                            weights=batch.weights * keep)  # fmt: skip
        sums = each(student(few), teacher(few), few).terms[each.name]
        parts.append(sums / each.count(few)[each.name])
    for step, beta in ((0, 1.0), (25, 1.25), (50, 1.5), (99, 1.5)):
        loss.begin_step(Progress(step, 100))
        got, _ = loss.objective(student(batch), teacher(batch), batch, loss.count(batch))
        torch.testing.assert_close(got, (2 - beta) * parts[0] + beta * parts[1])


def test_swapping_whose_words_they_are_is_another_loss():
    student, teacher = models()
    batch = four_rows()
    swapped = batch.replace(
        source=torch.where(batch.source == Source.STUDENT, int(Source.GOLD), int(Source.STUDENT))
    )
    values = []
    for rows in (batch, swapped):
        loss = known()
        values.append(loss.objective(student(rows), teacher(rows), rows, loss.count(rows))[0])
    assert abs(values[0] - values[1]) > 1e-3


def test_a_teacher_on_all_ids_is_the_live_one():
    student, teacher = models()
    batch = four_rows()
    few = only(stored(teacher(batch), batch, 11))
    want, got = (
        (loss := known()).objective(student(batch), said, batch, loss.count(batch))[0]
        for said in (teacher(batch), few)
    )
    torch.testing.assert_close(got, want)


def test_no_kernel_takes_it_for_a_formula():
    assert all(told == (None, False) for told in stated(ContrastiveSkew()).values())
    with pytest.raises(KDError):
        backends.refuse("triton", "cuda", stated(ContrastiveSkew()))
    constant = stated(ContrastiveSkew(adaptive=False))
    assert all(formula is not None and slope for formula, slope in constant.values())


@pytest.mark.parametrize(
    "bad", [{"skew": 0.005}, {"least": 0.0}, {"skew": 1.0}, {"momentum": 1.0}, {"balance": 2.5}]
)
def test_what_cannot_be_is_refused(bad):
    with pytest.raises(KDError):
        ContrastiveSkew(**bad)
