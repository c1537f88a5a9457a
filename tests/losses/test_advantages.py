"""Advantages, surrogates and penalties, word by word."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.advantages import GAE, GRPO, RLOO, DrGRPO, EarlyFirst, Rewards, TokenReturn
from kd_lightning.losses.penalties import K2, K3, ScoreKL
from kd_lightning.losses.surrogates import ClippedRatio, ImportanceWeighted


def rewards(total, group, values=None):
    """Answers of three words, whose reward comes with the last."""
    tokens = torch.zeros(len(total), 4, dtype=torch.float64)
    tokens[:, 3] = torch.tensor(total)
    where = torch.tensor([[False, True, True, True]]).expand(len(total), 4)
    return Rewards(tokens, where, torch.tensor(group), values)


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_one():
    r = rewards([0.0, 1.0, 5.0, 2.0, 7.0], [4, 4, 4, 9, 9])
    got = RLOO()(r)[:, 1]
    want = torch.tensor([0 - 3, 1 - 2.5, 5 - 0.5, -5.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(got, want)
    factor = torch.tensor([1.5, 1.5, 1.5, 2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(got, factor * DrGRPO()(r)[:, 1])


def test_group_relative_is_in_standard_deviations():
    r = rewards([0.0, 1.0, 5.0, 2.0, 2.0, 3.0], [4, 4, 4, 9, 9, 2])
    first = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    got = GRPO()(r)[:, 2]
    torch.testing.assert_close(got[:3], (first - 2) / (first.std() + 1e-4))
    assert got[3:].eq(0).all()  # equal ones, and one alone
    assert RLOO()(r)[5, 1] == 0
    with pytest.raises(KDError, match="epsilon"):
        GRPO(0.0)


def test_generalised_advantages_between_one_step_and_the_whole_return():
    generator = torch.Generator().manual_seed(0)
    where = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0]]).bool()
    tokens = torch.randn(2, 6, generator=generator, dtype=torch.float64) * where
    values = torch.randn(2, 6, generator=generator, dtype=torch.float64) * where
    found = Rewards(tokens, where, torch.arange(2), values)
    for discount, trace in ((1.0, 1.0), (0.9, 0.0), (0.9, 0.7)):
        got = GAE(discount, trace)(found)
        for i in range(2):
            places = where[i].nonzero().squeeze(-1).tolist()
            v = [float(values[i, t]) for t in places] + [0.0]
            r = [float(tokens[i, t]) for t in places]
            deltas = [r[k] + discount * v[k + 1] - v[k] for k in range(len(r))]
            for k, t in enumerate(places):
                want = sum((discount * trace) ** (s - k) * deltas[s] for s in range(k, len(r)))
                assert got[i, t].item() == pytest.approx(want, rel=1e-12, abs=1e-12)
    whole = GAE(1.0, 1.0)(found) + values
    torch.testing.assert_close(torch.where(where, whole, 0.0), TokenReturn()(found))


def test_returns_of_what_follows():
    where = torch.tensor([[1, 0, 1, 1, 0]]).bool()
    r = Rewards(torch.tensor([[1.0, 0, 2.0, 4.0, 0]]).double(), where, torch.zeros(1).long())

    def got(**settings):
        return TokenReturn(**settings)(r)[0, [0, 2, 3]].tolist()

    assert got() == [7, 6, 4]
    assert got(discount=0.5) == [3, 4, 4]
    assert got(discount=0.0) == [1, 2, 4]
    assert got(following=True) == [6, 4, 0]
    assert got(discount=0.5, following=True) == [2, 2, 0]
    assert got(per_word="remaining") == [7 / 3, 3, 4]
    assert got(following=True, per_word="remaining") == [3, 4, 0]
    early = EarlyFirst(0.5)(r)[0, [0, 2, 3]]
    torch.testing.assert_close(
        early, torch.tensor([1 * 1.5, 2 * (1 + 0.5 * 6 / 7), 4 * (1 + 0.5 * 4 / 7)]).double()
    )


def test_penalties_word_by_word():
    q, p = torch.tensor([-1.0, -0.2], requires_grad=True), torch.tensor([-0.5, -2.0])
    ratio = torch.tensor([2.0, 0.5])
    k3 = (p - q).exp() - 1 - (p - q)
    torch.testing.assert_close(K2()(q, p, ratio), (q - p) ** 2 / 2)
    torch.testing.assert_close(K3()(q, p, ratio), k3)
    torch.testing.assert_close(K3(corrected=True)(q, p, ratio), k3 * ratio)
    torch.testing.assert_close(ScoreKL()(q, p, ratio), q - p)
    (slope,) = torch.autograd.grad(ScoreKL()(q, p, ratio).sum(), q)
    torch.testing.assert_close(slope, (q - p).detach())


def test_weights_of_another_policys_words():
    logp = torch.tensor([[0.0, -1.0, -2.0]], requires_grad=True)
    old, where = torch.tensor([[9.0, -2.0, -1.5]]), torch.tensor([[False, True, True]])
    ones = torch.ones(1, 3)
    e = torch.e
    for level, want in (("token", [e, e**-0.5]), ("prefix", [e, e**0.5]), ("answer", [e**0.5] * 2)):
        got = ImportanceWeighted(level=level)(logp, old, ones, where)
        torch.testing.assert_close(got[0, 1:], -torch.tensor(want) * logp[0, 1:])
    capped = ImportanceWeighted(cap=1.0)(logp, old, ones, where)
    torch.testing.assert_close(capped[0, 1:], -torch.tensor([1.0, e**-0.5]) * logp[0, 1:])
    slope = torch.autograd.grad(capped[0, 2], logp)[0]
    torch.testing.assert_close(slope[0, 2], torch.tensor(-(e**-0.5)))


def test_the_clip_stops_what_goes_too_far_and_only_that():
    logp = torch.tensor([[0.5, 0.5, -0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    where, old = torch.ones(1, 4).bool(), torch.zeros(1, 4)
    ClippedRatio()(logp, old, advantages, where).sum().backward()
    moved = logp.grad[0].ne(0).tolist()
    assert moved == [False, True, True, False]
    logp.grad = None
    ClippedRatio(low=0.2, high=0.7)(logp, old, advantages, where).sum().backward()
    assert logp.grad[0].ne(0).tolist() == [True, True, True, False]
