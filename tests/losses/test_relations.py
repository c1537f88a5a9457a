"""How the divergences hang together: limits, identities, conventions that are often wrong."""

import math

import pytest
import torch

from kd_lightning.losses.adaptive import AdaptiveKL
from kd_lightning.losses.alpha import AlphaDivergence
from kd_lightning.losses.alpha_beta import AlphaBetaDivergence
from kd_lightning.losses.decoupled import DecoupledKD
from kd_lightning.losses.hellinger import Hellinger
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL, SymmetricKL
from kd_lightning.losses.skew import SkewForwardKL, SkewReverseKL
from kd_lightning.losses.taid import TAID
from kd_lightning.losses.total_variation import TotalVariation
from tests.losses.kit import head_weight, one_row, pair, value

close = torch.testing.assert_close


@pytest.fixture
def logits():
    z_s, z_t = pair()
    return z_s.detach(), z_t


def both(logits):
    return value(ForwardKL(), *logits), value(ReverseKL(), *logits)


def test_directions(logits):
    forward, reverse = both(logits)
    assert abs(forward - reverse) > 0.1
    close(value(ReverseKL(), *reversed(logits)), forward)
    z_s, z_t = logits
    cross_entropy = -(z_t.softmax(-1) * z_s.log_softmax(-1)).sum()
    assert abs(forward - cross_entropy) > 1  # KL, not the cross-entropy that it is named for


def test_symmetric_kl_between_its_ends(logits):
    forward, reverse = both(logits)
    close(value(SymmetricKL(1.0), *logits), forward)
    close(value(SymmetricKL(0.0), *logits), reverse)
    close(value(SymmetricKL(0.9), *logits), 0.9 * forward + 0.1 * reverse)


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_jensen_shannon_weighs_the_teacher(logits, beta):
    q, p = (z.softmax(-1) for z in logits)

    def mixed(share, on_teacher):
        m = share * p + (1 - share) * q
        teacher, student = (p * (p / m).log()).sum(), (q * (q / m).log()).sum()
        return on_teacher * teacher + (1 - on_teacher) * student

    got = value(JensenShannon(beta), *logits)
    close(got, mixed(beta, beta))
    assert abs(got - mixed(1 - beta, 1 - beta)) > 1e-2  # beta on the student
    assert abs(got - mixed(beta, 1 - beta)) > 1e-2  # mixture and weights turned against each other


def test_jensen_shannon_limits_and_bound(logits):
    forward, reverse = both(logits)
    close(value(JensenShannon(1e-7), *logits) / 1e-7, forward, rtol=1e-4, atol=0)
    close(value(JensenShannon(1 - 1e-7), *logits) / 1e-7, reverse, rtol=1e-4, atol=0)
    z_s, z_t = pair(scale=1e4)
    assert value(JensenShannon(0.5), z_s, z_t) <= 6 * math.log(2) + 1e-9


def test_a_mixture_of_probabilities_would_break_at_a_wide_spread():
    z_s, z_t = pair(scale=1e4, dtype=torch.float32)
    q, p = z_s.softmax(-1), z_t.softmax(-1)
    m = 0.5 * p + 0.5 * q
    wrong = 0.5 * (p * (p.log() - m.log())).sum() + 0.5 * (q * (q.log() - m.log())).sum()
    assert not wrong.isfinite()
    assert value(JensenShannon(), z_s, z_t).isfinite()


@pytest.mark.parametrize("skew", [0.01, 0.1, 0.5])
def test_skew(logits, skew):
    forward, reverse = both(logits)
    assert value(SkewForwardKL(skew), *logits) < forward
    assert value(SkewReverseKL(skew), *logits) < reverse
    close(value(SkewForwardKL(0.0), *logits), forward)
    close(value(SkewReverseKL(0.0), *logits), reverse)
    z_s, z_t = pair(scale=1e4)
    for cls in (SkewForwardKL, SkewReverseKL):
        assert value(cls(skew), z_s, z_t) <= -6 * math.log(skew) + 1e-9


def test_skew_mixes_the_first_distribution_into_the_second(logits):
    q, p = (z.softmax(-1) for z in logits)
    mirrored = (p * (p / (0.9 * p + 0.1 * q)).log()).sum()
    assert abs(value(SkewForwardKL(0.1), *logits) - mirrored) > 0.1


def test_alpha_divergence_limits(logits):
    forward, reverse = both(logits)
    close(value(AlphaDivergence(1.0), *logits), forward)
    close(value(AlphaDivergence(0.0), *logits), reverse)
    for end, sign, limit in ((0.0, 1, reverse), (1.0, -1, forward)):
        far = value(AlphaDivergence(end + sign * 0.002), *logits) - limit
        near = value(AlphaDivergence(end + sign * 0.001), *logits) - limit
        close(far / near, torch.tensor(2.0, dtype=torch.float64), rtol=1e-2, atol=0)
        assert abs(near) < 0.01 * limit


def test_hellinger_alpha_and_total_variation(logits):
    hellinger = value(Hellinger(), *logits)
    close(value(AlphaDivergence(0.5), *logits), 4 * hellinger)
    variation = value(TotalVariation(), *[z[:1] for z in logits])
    squared = value(Hellinger(), *[z[:1] for z in logits])
    assert squared <= variation <= (2 * squared).sqrt()  # Le Cam


def test_bounded_ones_reach_one():
    z_s = torch.tensor([[1e4, 0.0, 0.0]])
    z_t = torch.tensor([[0.0, 1e4, 0.0]])
    for loss in (TotalVariation(), Hellinger()):
        close(value(loss, z_s, z_t), torch.tensor(1.0))


def test_alpha_beta_special_cases(logits):
    forward, reverse = both(logits)
    close(value(AlphaBetaDivergence(1.0, 0.0), *logits), forward)
    close(value(AlphaBetaDivergence(0.0, 1.0), *logits), reverse)
    for alpha in (0.3, 0.5, 0.7):
        got = value(AlphaBetaDivergence(alpha, 1 - alpha), *logits)
        close(got, value(AlphaDivergence(alpha), *logits))
    q, p = (z.softmax(-1) for z in logits)
    close(value(AlphaBetaDivergence(1.0, 1.0), *logits), 0.5 * (p - q).square().sum())


@pytest.mark.parametrize("other", [0.5, 1.0, 1.5])
def test_alpha_beta_limits(logits, other):
    for at in (lambda x: (other, x), lambda x: (x, other)):
        limit = value(AlphaBetaDivergence(*at(0.0)), *logits)
        far = value(AlphaBetaDivergence(*at(0.002)), *logits) - limit
        near = value(AlphaBetaDivergence(*at(0.001)), *logits) - limit
        close(far / near, torch.tensor(2.0, dtype=torch.float64), rtol=1e-2, atol=0)
        assert abs(near) < 0.01 * limit


@pytest.mark.parametrize("cls", [AlphaDivergence, AlphaBetaDivergence])
def test_next_to_a_limit_float32_still_holds(cls):
    z_s, z_t = pair(vocab=2000)
    arguments = {"alpha": 0.001, **({"beta": 0.999} if cls is AlphaBetaDivergence else {})}
    want = value(cls(**arguments), z_s, z_t)
    got = value(cls(**arguments), z_s.float(), z_t.float())
    close(got.double(), want, rtol=2e-3, atol=0)


def test_decoupled_is_forward_kl_with_the_faded_weight():
    for seed in range(4):
        z_s, z_t = pair(rows=1, seed=seed)
        p_y = z_t.softmax(-1)[0, one_row(1, 9).targets[0, 0]].item()
        forward = value(ForwardKL(), z_s, z_t)
        close(value(DecoupledKD(1.0, 1 - p_y), z_s, z_t), forward)
        on_label = value(DecoupledKD(1.0, 0.0), z_s, z_t)
        on_others = value(DecoupledKD(0.0, 1.0), z_s, z_t)
        close(on_label + (1 - p_y) * on_others, forward)
        assert on_label >= 0
        assert on_others > 0


def test_decoupled_sees_the_label(logits):
    z_s, z_t = logits
    order = torch.arange(8, -1, -1)
    turned = value(DecoupledKD(), z_s[:, order], z_t[:, order])  # the labels stay
    assert abs(value(DecoupledKD(), z_s, z_t) - turned) > 1e-3


def test_taid_between_student_and_teacher(logits):
    close(value(TAID(start=1.0), *logits), value(ForwardKL(), *logits))
    assert abs(value(TAID(start=0.0), *logits)) < 1e-12
    values = [value(TAID(start=t), *logits) for t in (0.1, 0.4, 0.7, 1.0)]
    assert values == sorted(values)


def test_taid_target_has_no_gradient():
    z_s, z_t = pair()
    slope = torch.autograd.grad(value(TAID(start=0.5), z_s, z_t), z_s)[0]
    target = (0.5 * z_s.detach() + 0.5 * z_t).softmax(-1)
    close(slope, z_s.detach().softmax(-1) - target)


def test_adaptive_weights(logits):
    z_s, z_t = logits
    loss = AdaptiveKL()
    weight = loss.head_weight(z_s.log_softmax(-1), z_t.log_softmax(-1))
    close(weight, head_weight(z_t.softmax(-1), z_s.softmax(-1)))
    assert ((weight > 0) & (weight < 1)).all()
    forward, reverse = [
        torch.stack([value(cls(), z_s[n : n + 1], z_t[n : n + 1]) for n in range(6)])
        for cls in (ForwardKL, ReverseKL)
    ]
    close(value(loss, z_s, z_t), (weight * forward + (1 - weight) * reverse).sum())


def test_adaptive_head_is_sorted_and_never_empty():
    p = torch.tensor([[0.05, 0.1, 0.6, 0.25], [0.3, 0.15, 0.2, 0.35], [0.2, 0.3, 0.1, 0.4]])
    q = torch.tensor([[0.25, 0.2, 0.3, 0.25], [0.1, 0.25, 0.4, 0.25], [0.2, 0.2, 0.2, 0.4]])
    got = AdaptiveKL().head_weight(q.log(), p.log())
    # heads: token 2 alone though it exceeds the half; token 3 (0.35 + 0.3 > 0.5); token 3
    close(got, torch.tensor([0.3 / 0.6, 0.1 / 0.6, 0.0]))


def test_adaptive_where_models_agree():
    z = torch.randn(3, 5)
    assert AdaptiveKL().head_weight(z.log_softmax(-1), z.log_softmax(-1)).eq(0.5).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JensenShannon(0.0), "ForwardKL"),
        (lambda: JensenShannon(1.0), "ReverseKL"),
        (lambda: SymmetricKL(1.1), "between 0 and 1"),
        (lambda: SkewForwardKL(1.0), "below 1"),
        (lambda: SkewReverseKL(-0.1), "at least 0"),
        (lambda: AlphaDivergence(1.5), "between 0 and 1"),
        (lambda: AlphaDivergence(1e-5), "write 0 for the limit"),
        (lambda: AlphaDivergence(1 - 1e-5), "write 1 for the limit"),
        (lambda: AlphaBetaDivergence(0.0, 0.0), "not both 0"),
        (lambda: AlphaBetaDivergence(0.5, -0.5), "at least 0"),
        (lambda: AlphaBetaDivergence(0.5, 1e-5), "beta 1e-05 is lost"),
        (lambda: AdaptiveKL(1.0), "strictly between"),
        (lambda: DecoupledKD(-1.0), "at least 0"),
        (lambda: TAID(start=0.5, end=0.4), "start <= end"),
        (lambda: TAID(pace=2.0), "pace"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
