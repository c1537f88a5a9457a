"""What the comparators imply: identities, limits, and what they leave out."""

import math
from itertools import permutations

import pytest
import torch

from kd_lightning.losses.comparators import Hinge, HingeOfMean, Logistic, Square
from kd_lightning.losses.listwise import (
    ListwiseSoftmax,
    PointwiseSigmoid,
    RankedSigmoid,
    SoftLabels,
)
from kd_lightning.losses.ranks import Ranks
from kd_lightning.losses.scores import LogOdds, LogRatio, Said
from tests.losses.judged import NAN, answers, log_sigmoid


def scores(number=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, generator=generator, dtype=torch.float64)


def ranks(group, reward):
    batch = answers([3] * len(group), [1] * len(group), group, reward)
    return Ranks.of(batch, grouped=True, demanded=True)


def test_pro_of_two_answers_whose_gap_is_one_is_bradley_terry():
    s, two = scores(2), ranks([0, 0], [0.0, 1.0])
    want = -log_sigmoid(s[1] - s[0])
    for comparator in (ListwiseSoftmax(by_gap=True), ListwiseSoftmax(), Logistic()):
        torch.testing.assert_close(comparator(s, two), want)
    three = ranks([0, 0], [0.0, 3.0])
    torch.testing.assert_close(
        ListwiseSoftmax(by_gap=True)(s, three), -log_sigmoid(3 * (s[1] - s[0]))
    )


def test_plackett_luce_is_a_distribution_over_orders():
    s = scores(4)
    total = 0.0
    for order in permutations(range(4)):
        reward = [0.0] * 4
        for place, i in enumerate(order):
            reward[i] = float(4 - place)
        total += (-ListwiseSoftmax()(s, ranks([0] * 4, reward))).exp()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64))


def test_against_the_best_only_is_one_softmax():
    s, four = scores(4), ranks([0] * 4, [0.5, 3.0, 1.0, 2.0])
    got = ListwiseSoftmax(against="best")(s, four)
    torch.testing.assert_close(got, -s.log_softmax(0)[1])
    pairs_of_best = [-log_sigmoid(s[1] - s[i]) for i in (0, 2, 3)]
    torch.testing.assert_close(Logistic(against="best")(s, four), sum(pairs_of_best) / 3)
    torch.testing.assert_close(
        Logistic(against="best", per_group="sum")(s, four), sum(pairs_of_best)
    )


def test_soft_labels_of_two_with_certainty_are_bradley_terry():
    s = scores(2)
    sure = ranks([0, 0], [0.0, 1.0])
    torch.testing.assert_close(SoftLabels()(s, sure), Logistic()(s, sure))
    torn = ranks([0, 0], [0.3, 0.7])
    want = -0.3 * s.log_softmax(0)[0] - 0.7 * s.log_softmax(0)[1]
    torch.testing.assert_close(SoftLabels()(s, torn), want)
    smooth = Logistic(label_smoothing=0.3)(s, torn)
    torch.testing.assert_close(smooth, want)
    drawn = SoftLabels(temperature=0.5)(s, torn)
    p = torch.tensor([0.6, 1.4], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(drawn, -(p * s.log_softmax(0)).sum(), rtol=1e-6, atol=1e-7)


def test_soft_labels_leave_the_lonely_and_the_unjudged_out():
    s = scores(4).requires_grad_()
    r = ranks([0, 0, 0, 5], [0.25, NAN, 0.75, 1.0])
    assert SoftLabels().count(r) == 1
    got = SoftLabels()(s, r)
    few = s[[0, 2]].log_softmax(0)
    torch.testing.assert_close(got, -0.25 * few[0] - 0.75 * few[1])
    got.backward()
    assert s.grad[1] == 0 and s.grad[3] == 0 and s.grad.isfinite().all()


def test_unbiased_smoothing_is_right_on_the_mean_over_wrong_labels():
    s, e = scores(2), 0.2
    right, wrong = ranks([0, 0], [0.0, 1.0]), ranks([0, 0], [1.0, 0.0])
    unbiased = Logistic(label_smoothing=e, unbiased=True)
    mean = (1 - e) * unbiased(s, right) + e * unbiased(s, wrong)
    torch.testing.assert_close(mean, Logistic()(s, right))
    smoothed = Logistic(label_smoothing=e)
    biased = (1 - e) * smoothed(s, right) + e * smoothed(s, wrong)
    assert abs(biased - mean) > 1e-3


def said(logp, length=1, reference=0.0):
    logp = torch.as_tensor(logp, dtype=torch.float64)
    return Said(logp, torch.full_like(logp, reference), torch.tensor(length), logp[:, None])


def test_log_odds_are_those_of_the_averaged_likelihood():
    for mean in (-1e-9, -1e-4, -0.3, -0.7, -5.0, -80.0):
        p = math.exp(mean)
        want = math.log(p) - math.log(-math.expm1(mean))
        got = LogOdds()(said([mean * 6], 6))
        assert got.item() == pytest.approx(want, rel=1e-12)
    assert LogOdds()(said([0.0], 6)).isfinite().all()


def test_ipo_is_done_where_the_difference_is_half_the_inverse_of_tau():
    tau = 0.25
    r = ranks([0, 0], [0.0, 1.0])
    comparator = Square(margin=1 / (2 * tau))
    s = torch.tensor([0.0, 1 / (2 * tau)], dtype=torch.float64)
    assert comparator(s, r) == 0
    assert comparator(s * 2, r) == pytest.approx((1 / (2 * tau)) ** 2)


def test_the_reward_of_the_best_policy_is_its_log_ratio():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).softmax(0)
    reward = torch.randn(6, generator=generator, dtype=torch.float64)
    beta = 0.3
    best = (reference.log() + reward / beta).softmax(0)
    constant = reward - beta * LogRatio()(
        Said(best.log(), reference.log(), torch.tensor(1), best[:, None])
    )
    torch.testing.assert_close(constant, constant.mean().expand(6))
    # so no pair of its answers has anything left to learn when rewards say how often each wins
    u = beta * (best / reference).log()
    wins = torch.sigmoid(reward[1] - reward[0])
    leaf = (u[1] - u[0]).detach().requires_grad_()
    (-(wins * log_sigmoid(leaf) + (1 - wins) * log_sigmoid(-leaf))).backward()
    assert abs(leaf.grad) < 1e-12


def test_ktos_reference_point_is_detached_and_never_below_zero():
    comparator = PointwiseSigmoid(desirable=2.0, undesirable=3.0)
    r = ranks([0, 0, 0, 0], [1.0, -1.0, NAN, NAN])
    for others, point in ((torch.tensor([0.5, 1.5]), 1.0), (torch.tensor([-2.0, 1.0]), 0.0)):
        s = torch.cat([torch.tensor([0.3, 0.4]), others]).double().requires_grad_()
        got = comparator(s, r)
        a, b = torch.sigmoid(s[0] - point), torch.sigmoid(point - s[1])
        torch.testing.assert_close(got, 2 * (1 - a) + 3 * (1 - b))
        got.backward()
        assert s.grad[2] == 0 and s.grad[3] == 0
        torch.testing.assert_close(s.grad[0], -2 * a * (1 - a))
    assert comparator.count(r) == 2


def test_labels_that_say_nothing_move_kto_nowhere_and_take_dpo_back():
    """Both labels on each answer are what random ones are on average."""

    def pushed(comparator, rewards, group):
        s = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
        sum(comparator(s, ranks(group, reward)) for reward in rewards).backward()
        return -s.grad

    both, alone = [[1.0, -1.0, NAN], [-1.0, 1.0, NAN]], [0, 0, 0]
    assert pushed(PointwiseSigmoid(), both, alone).abs().max() < 1e-15
    assert (pushed(PointwiseSigmoid(desirable=1.5), both, alone)[:2] > 0.05).all()
    up, down, _ = pushed(Logistic(), both, alone)
    assert up < -0.05 and down > 0.05  # to where the two are worth the same, as at the start


def test_equal_rewards_make_no_pair_and_the_first_of_the_best_is_the_best():
    s, r = scores(3), ranks([0, 0, 0], [1.0, 1.0, 0.0])
    assert r.best.tolist() == [True, False, False]
    want = (-log_sigmoid(s[0] - s[2]) - log_sigmoid(s[1] - s[2])) / 2
    torch.testing.assert_close(Logistic()(s, r), want)
    flat = ranks([0, 0], [1.0, 1.0])
    for comparator in (Logistic(), Hinge(1.0), Square(1.0), HingeOfMean(1.0), ListwiseSoftmax(),
                       RankedSigmoid()):  # fmt: skip
        assert comparator.count(flat) == 0
        assert comparator(s[:2], flat) == 0
