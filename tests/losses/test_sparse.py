"""Teachers that are known on a few ids: every divergence, every support, every edge."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.errors import KDError
from kd_lightning.losses import CrossEntropy, DecoupledKD, ForwardKL, JensenShannon, ReverseKL
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.types import IGNORE
from tests.kernels.kit import HEADS, batch, by_hand, close, fused, gradients, leaves, models
from tests.kernels.test_equals_autograd import Weigh
from tests.kernels.test_what_it_costs import Largest
from tests.losses.few import FORMULAS, SUPPORTS, only, plain, store, stored
from tests.losses.kit import DIVERGENCES, STOPPED, build, from_logits, one_row, pair, total

every = pytest.mark.parametrize("cls", DIVERGENCES, ids=lambda c: c.__name__)
supports = pytest.mark.parametrize("support", SUPPORTS)
tempered = pytest.mark.parametrize("temperature", [1.0, 2.5])


def value(loss, z_s, sparse, rows, vocab=None):
    return total(loss, from_logits(z_s, vocab), only(sparse), rows)


def gradient(result, z):
    return torch.autograd.grad(result, z)[0]


# ------------------------------------------------------------------ what it is
@every
@supports
@tempered
@pytest.mark.parametrize("k", [1, 2, 4])
def test_value_and_gradient_equal_the_formula(cls, support, temperature, k):
    if cls.__name__ not in FORMULAS:
        pytest.skip("no formula in plain probabilities is written down for this class")
    if k == 1 and support != "tail" and cls.__name__ in ("AdaptiveKL", "DecoupledKD"):
        pytest.skip("a distribution on one id has no tail and no others")
    z_s, z_t = pair(rows=12)
    rows = one_row(12, 9)
    want = plain(cls, z_s, z_t, rows.targets[0], k, support, temperature).sum()
    sparse = store(z_t, rows.targets[0], k, support)
    got = value(build(cls, temperature=temperature), z_s, sparse, rows)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient(got, z_s), gradient(want, z_s), rtol=1e-8, atol=1e-10)


@every
@supports
@tempered
def test_all_ids_equal_the_live_teacher(cls, support, temperature):
    student, teacher = models(rows=13, vocab=11, bias=True, softcap=3.0)
    loss = {"x": build(cls, temperature=temperature, square_temperature=True)}
    want = by_hand(loss, student, teacher, batch())
    slopes = gradients(want, student)
    few = only(stored(teacher, batch(), 11, support))
    for chunk in (1, 5, None):
        got = fused(loss, student, few, batch(), chunk)
        close([got], [want])
        close(gradients(got, student), slopes)
    got = by_hand(loss, student, few, batch())
    close([got], [want])
    close(gradients(got, student), slopes)


@every
@supports
@pytest.mark.parametrize("how", ["plain", "everything", "padded"])
def test_fused_equals_step_by_step(cls, support, how):
    student, teacher = models(**HEADS[how])
    few = only(stored(teacher, batch(), 4, support))
    loss = {"x": build(cls, temperature=2.5)}
    want = by_hand(loss, student, few, batch())
    slopes = gradients(want, student)
    for chunk in (5, None):
        got = fused(loss, student, few, batch(), chunk)
        close([got], [want])
        close(gradients(got, student), slopes)


@every
@supports
def test_gradcheck(cls, support):
    if cls.__name__ in STOPPED:
        pytest.skip("has a part without gradient; its gradient is compared with the formula")
    student, teacher = models(bias=True, scale=1.3, softcap=3.0)
    few = only(stored(teacher, batch(), 3, support))
    losses = {"x": build(cls, temperature=2.5), "ce": CrossEntropy()}
    factors, counts = {"x": 0.7, "ce": 1.1}, dict.fromkeys(["x", "ce"], torch.tensor(3.0))

    def sums(*_):  # the leaves are moved in place
        return TokenSum(losses, student, few, batch(), 5).total(factors, counts)[0]

    assert torch.autograd.gradcheck(sums, leaves(student), fast_mode=True)


def test_several_terms_over_one_projection():
    """Cross-entropy, which needs no teacher, beside divergences at two temperatures."""
    student, teacher = models(vocab=9, rows=11, bias=True)
    few = only(stored(teacher, batch(), 4))
    losses = {
        "ce": CrossEntropy(), "kl": ForwardKL(2.5, True), "jsd": JensenShannon(0.3),
        "dkd": DecoupledKD(),
    }  # fmt: skip
    together = by_hand(losses, student, few, batch())
    for name, loss in losses.items():
        alone = by_hand({name: loss}, student, None if name == "ce" else few, batch())
        torch.testing.assert_close(together[list(losses).index(name)], alone[0])
    upstream = torch.tensor([0.3, -2.0, 1e-3, 5.0], dtype=torch.float64)
    got = fused(losses, student, few, batch(), 5)
    close([got], [together])
    close(gradients(got @ upstream, student), gradients(together @ upstream, student))


def test_a_loss_that_learns_goes_step_by_step():
    student, teacher = models()
    few = only(stored(teacher, batch(), 4))
    losses = {"own": Weigh(), "kl": ForwardKL()}
    assert TokenSum(losses, student, few, batch()).job()[0] is None
    sums = TokenSum(losses, student, few, batch(), 4).terms()
    torch.testing.assert_close(sums["kl"], fused({"kl": ForwardKL()}, student, few, batch())[0])


# ------------------------------------------------------------------ what the supports promise
numbers = st.integers(0, 10**6)


@settings(max_examples=60, deadline=None)
@given(seed=numbers, k=st.integers(1, 9), scale=st.floats(0.1, 30.0))
def test_the_tail_never_exceeds_the_whole_and_never_falls_below_zero(seed, k, scale):
    z_s, z_t = pair(rows=4, vocab=9, seed=seed, scale=scale)
    rows = one_row(4, 9)
    got = [value(ForwardKL(), z_s, store(z_t, rows.targets[0], n), rows) for n in (k, 9)]
    whole = total(ForwardKL(), from_logits(z_s), from_logits(z_t), rows)
    assert -1e-9 <= got[0] <= whole + 1e-9 * (1 + whole.abs())
    torch.testing.assert_close(got[1], whole, rtol=1e-9, atol=1e-9)


def test_the_published_variants_differ_and_the_unnormalised_may_be_negative():
    """By hand: teacher 0.5, 0.3, 0.2; student 0.8, 0.1, 0.1; the two likeliest are known."""
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    q = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64)
    rows = one_row(1, 3)
    found = {
        support: value(ForwardKL(), q.log(), store(p.log(), rows.targets[0], 2, support), rows)
        for support in SUPPORTS
    }

    def kl(*pairs):
        return sum(a * torch.tensor(a / b, dtype=torch.float64).log() for a, b in pairs)

    want = {
        "tail": kl((0.5, 0.8), (0.3, 0.1), (0.2, 0.1)),
        "both_renormalised": kl((0.625, 8 / 9), (0.375, 1 / 9)),
        "teacher_renormalised": kl((0.625, 0.8), (0.375, 0.1)),
        "unnormalised": kl((0.5, 0.8), (0.3, 0.1)),
    }
    torch.testing.assert_close(found, want)
    sure = torch.tensor([[0.9, 0.09, 0.01]], dtype=torch.float64)
    sparse = store(p.log(), rows.targets[0], 1, "unnormalised")
    assert value(ForwardKL(), sure.log(), sparse, rows) < -0.2  # not clamped


@every
def test_nothing_to_learn_from_oneself(cls):
    for scale in (1.0, 30.0, 1e4):
        for dtype in (torch.float64, torch.float32):
            _, z = pair(rows=6, vocab=50, scale=scale, dtype=dtype)
            rows = one_row(6, 50)
            for temperature in (1.0, 2.5):
                z_s = z.clone().requires_grad_()
                sparse = store(z, rows.targets[0], 5)
                got = value(build(cls, temperature=temperature), z_s, sparse, rows)
                assert abs(got.item()) < 1e-4
                if cls.__name__ != "TotalVariation":  # the sign of a rounding error
                    assert gradient(got, z_s).abs().max() < 1e-3


@every
@supports
def test_gradients_of_a_token_sum_to_zero(cls, support):
    z_s, z_t = pair(vocab=30)
    rows = one_row(6, 30)
    got = value(build(cls), z_s, store(z_t, rows.targets[0], 4, support), rows)
    assert gradient(got, z_s).sum(-1).abs().max() < 1e-9


# ------------------------------------------------------------------ edges
@every
@supports
@tempered
def test_empty_slots_are_not_there(cls, support, temperature):
    """Whatever their ids are: those of other slots, of the tail, of nothing."""
    z_s, z_t = pair()
    rows = one_row(6, 9)
    sparse = store(z_t, rows.targets[0], 3, support)
    loss = build(cls, temperature=temperature)
    want = value(loss, z_s, sparse, rows)
    slope = gradient(want, z_s)
    for fill in (0, 8, 5):
        for front in (False, True):
            ids = [sparse.ids, torch.full((6, 2), fill)]
            logits = [sparse.logits, torch.full((6, 2), -torch.inf)]
            padded = replace(
                sparse,
                ids=torch.cat(ids[::-1] if front else ids, -1),
                logits=torch.cat(logits[::-1] if front else logits, -1).double(),
            )
            got = value(loss, z_s, padded, rows)
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(gradient(got, z_s), slope)


@every
@supports
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_wherever_the_mass_is(cls, support, dtype):
    """All of it on the ids, none of it, on both sides; some rows know every id, some none."""
    z, _ = pair(rows=4, vocab=17, scale=1e4)
    z = z.detach()
    hot = torch.zeros_like(z).scatter(1, torch.arange(4)[:, None], 1e4)
    rows = one_row(4, 17)
    for student, teacher in [(z, -z), (hot, z), (z, hot), (hot, hot.roll(5, -1)), (0 * z, hot),
                             (hot, 0 * z), (z, z)]:  # fmt: skip
        for k in (1, 4, 16, 17):
            sparse = store(teacher.float(), rows.targets[0], k, support)
            for empty in (False, True):
                if empty:
                    logits = sparse.logits.clone()
                    logits[0], logits[1, 1:] = -torch.inf, -torch.inf
                    sparse = replace(sparse, logits=logits)
                z_s = student.to(dtype).requires_grad_()
                got = value(build(cls, temperature=2.5), z_s, sparse, rows)
                assert got.isfinite()
                assert gradient(got, z_s).isfinite().all()


def test_a_tail_below_what_float32_tells_from_zero():
    """The teacher's tail of 1e-12 is lost in what is stored; the student's of 1e-30 is not."""
    rows = one_row(1, 4)
    z_t = torch.tensor([[0.0, -0.5, -28.0, -29.0]])
    z_s = torch.tensor([[0.0, -0.5, -70.0, -71.0]], requires_grad=True)
    sparse = store(z_t, rows.targets[0], 2)
    whole = total(ForwardKL(), from_logits(z_s.double()), from_logits(z_t.double()), rows)
    got = value(ForwardKL(), z_s, sparse, rows)
    assert abs(got - whole) < 1e-5
    assert gradient(got, z_s).abs().max() < 1e-6
    assert value(ReverseKL(), z_s, sparse, rows).abs() < 1e-6


def test_the_students_tail_is_summed_not_subtracted():
    """In float32, 1 - sum would be 0 or noise where the student's tail is 1e-9."""
    rows = one_row(1, 40)
    z_t = torch.zeros(1, 40).scatter(1, torch.tensor([[3]]), 3.0)
    z_s = torch.full((1, 40), -24.4).scatter(1, torch.tensor([[3]]), 0.0).requires_grad_()
    got = value(ForwardKL(), z_s, store(z_t, rows.targets[0], 1), rows)
    whole = total(ForwardKL(), from_logits(z_s.double()), from_logits(z_t.double()), rows)
    torch.testing.assert_close(got.double(), whole, rtol=1e-5, atol=0)  # the others are alike


@tempered
def test_the_label_gets_a_bucket_of_its_own(temperature):
    z_s, z_t = pair(rows=12)
    rows = one_row(12, 9)
    targets, loss = rows.targets[0], DecoupledKD(temperature=temperature)
    sparse = store(z_t, targets, 3)
    outside = ~(sparse.ids == targets[:, None]).any(-1)
    assert outside.any() and not outside.all()
    more = torch.cat([sparse.ids, targets[:, None]], -1)
    logits = z_t.gather(-1, more) - z_t.amax(-1, keepdim=True)
    logits[~outside, -1] = -torch.inf
    want = value(loss, z_s, replace(sparse, ids=more, logits=logits), rows)
    got = value(loss, z_s, sparse, rows)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, z_s), gradient(want, z_s))


@every
@tempered
def test_ids_that_the_student_does_not_know_are_cut_off_and_the_rest_renormalised(cls, temperature):
    """As with a live teacher; 35 ids against 40, and padding on the student's side."""
    z_s, z_t = pair(vocab=40, scale=2.0)
    rows, loss = one_row(6, 35), build(cls, temperature=temperature)
    sparse = store(z_t, rows.targets[0], 40)
    got = value(loss, z_s, sparse, rows, vocab=35)
    want = total(loss, from_logits(z_s, 35), from_logits(z_t, 40), rows)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient(got, z_s), gradient(want, z_s), rtol=1e-8, atol=1e-10)
    assert gradient(value(loss, z_s, sparse, rows, vocab=35), z_s)[:, 35:].eq(0).all()


@every
def test_ids_that_the_teacher_does_not_know(cls):
    z_s, z_t = pair(vocab=40)
    rows, loss = one_row(6, 35), build(cls)
    sparse = store(z_t, rows.targets[0], 40, vocab=35)
    got = value(loss, z_s, sparse, rows)
    want = total(loss, from_logits(z_s), from_logits(z_t, 35), rows)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    slope = gradient(got, z_s)
    assert slope[:, 35:].eq(0).all()
    foreign = replace(sparse, ids=torch.cat([sparse.ids, torch.full((6, 1), 36)], -1),
                      logits=torch.cat([sparse.logits, torch.full((6, 1), 1e4)], -1))  # fmt: skip
    torch.testing.assert_close(value(loss, z_s, foreign, rows), got)


# ------------------------------------------------------------------ the seams
def test_rows_are_the_positions_with_a_target():
    """Whatever counts, and in whichever chunk; a target that weighs nothing has a row too."""
    student, teacher = models()
    rows = batch()
    rows.weights[0, 3] = rows.weights[2, 0] = 0.0
    sparse = stored(teacher, rows, 4)
    want = by_hand({"x": ForwardKL()}, student, only(sparse), rows)
    place = (rows.targets != IGNORE).flatten().cumsum(0) - 1
    spoiled = sparse.logits.clone()
    spoiled[place.view(3, 6)[0, 3]] = torch.nan
    got = fused({"x": ForwardKL()}, student, only(replace(sparse, logits=spoiled)), rows, 4)
    close([got], [want])
    expected = [
        plain(ForwardKL, z_s[None], z_t[None], y[None], 4, "tail") * w
        for z_s, z_t, y, w in zip(
            student.logits[rows.targets != IGNORE].detach(),
            teacher.head(teacher.hidden.clone())[rows.targets != IGNORE, :11].detach(),
            rows.targets[rows.targets != IGNORE],
            rows.weights[rows.targets != IGNORE].double(),
            strict=True,
        )
    ]
    close([got[0].detach()], [torch.cat(expected).sum()])


def test_targets_of_another_batch_are_noticed():
    student, teacher = models()
    sparse = stored(teacher, batch(), 4)
    with pytest.raises(AssertionError, match="13 stored targets for 4 counted tokens"):
        fused({"x": ForwardKL()}, student, only(sparse), batch().rows(0, 1))


def test_no_counted_token_is_zero_with_a_graph():
    student, teacher = models()
    nothing = batch().masked()
    student = replace(student, hidden=student.hidden[:1])
    sparse = stored(replace(teacher, hidden=teacher.hidden[:1]), nothing, 4)
    for sums in (fused, by_hand):
        got = sums({"x": ForwardKL(), "d": DecoupledKD()}, student, only(sparse), nothing)
        assert got.eq(0).all()
        assert all(slope.eq(0).all() for slope in gradients(got.sum(), student))


def test_a_temperature_that_is_not_stored_is_refused():
    student, teacher = models()
    few = only(stored(teacher, batch(), 4))
    with pytest.raises(KDError, match=r"temperature 3\.0, its stored targets hold 1\.0, 2\.5"):
        fused({"x": ForwardKL(3.0)}, student, few, batch())


@every
@supports
def test_no_tensor_of_all_tokens_by_the_vocabulary(cls, support):
    student, teacher = models(vocab=300, bias=True, softcap=3.0)
    few = only(stored(teacher, batch(), 4, support))
    losses = {"x": build(cls), "kl": ForwardKL()}
    even = dict.fromkeys(losses, 1.0), dict.fromkeys(losses, torch.ones(()))
    with Largest() as seen:
        TokenSum(losses, student, few, batch(), chunk=2).total(*even)[0].backward()
    assert seen.elements == 4 * 300  # the student's weight, which was there before
