"""Policy gradients against their formulas, in plain loops."""

from functools import partial

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.advantages import (
    GAE,
    GRPO,
    RLOO,
    DrGRPO,
    Reinforce,
    TokenReturn,
)
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ReverseKL
from kd_lightning.losses.penalties import FullKL
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.losses.reward_weighted import RewardWeighted
from kd_lightning.losses.surrogates import ClippedRatio, ImportanceWeighted
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import IGNORE, ModelOutput, Source
from tests.losses.judged import NAN, answers, compare, models, ranked, read
from tests.losses.kit import Same, Toy
from tests.losses.test_loss_configs import FILES, parse


def of_file(name):
    return parse(f"--loss={next(p for p in FILES if p.stem == name)}")[2]


# ------------------------------------------------------------------ the formulas, in plain loops
def takes_part(rows):
    return [row for row in rows if row.judged]


def peers(row, rows):
    return [other for other in takes_part(rows) if other.group == row.group]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def rloo(row, rows, reward):
    others = [reward(r) for r in peers(row, rows) if r is not row]
    return reward(row) - mean(others) if others else 0.0


def grpo(row, rows, reward, divide=True):
    found = [reward(r) for r in peers(row, rows)]
    if len(found) < 2:
        return 0.0
    spread = (sum((r - mean(found)) ** 2 for r in found) / (len(found) - 1)) ** 0.5
    return (reward(row) - mean(found)) / ((spread + 1e-4) if divide else 1)


def per_word(rows, each, how, length=1):
    """Sum over words of `each(row, t)`, normalised by name."""
    kept = takes_part(rows)
    if how == "token":
        return sum(each(r, t) for r in kept for t in range(len(r.words))) / sum(
            len(r.words) for r in kept
        )
    if how == "sequence":
        return mean(mean(each(r, t) for t in range(len(r.words))) for r in kept)
    return sum(each(r, t) for r in kept for t in range(len(r.words))) / (len(kept) * length)


def clip(row, t, advantage, old, low=0.2, high=0.2):
    ratio = (row.words[t] - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


OLD = 0.35
"""By how much the old policy's log-probabilities lie apart: clipped on both sides."""


def older(batch):
    """Behaviour log-probabilities that differ from the student's."""
    student, teacher = models()
    behaviour = torch.full(batch.targets.shape, NAN, dtype=torch.float64)
    for i, row in enumerate(read(student, teacher, batch)):
        for t, place in enumerate(row.places):
            behaviour[i, place] = row.words[t].item() + OLD * (-1) ** (i + t)
    return batch.replace(behaviour=behaviour)


def old_word(row, t, index):
    return row.words[t].item() + OLD * (-1) ** (index + t)


def golden_grpo(rows):
    def each(row, t):
        i = rows.index(row)
        k3 = (row.fixed[t] - row.words[t]).exp() - 1 - (row.fixed[t] - row.words[t])
        return clip(row, t, grpo(row, rows, lambda r: r.reward), old_word(row, t, i)) + 0.04 * k3

    return per_word(rows, each, "sequence")


def golden_dapo(rows):
    def each(row, t):
        i = rows.index(row)
        advantage = grpo(row, rows, lambda r: r.reward)
        return clip(row, t, advantage, old_word(row, t, i), 0.2, 0.28)

    return per_word(rows, each, "token")


def golden_dr_grpo(rows):
    def each(row, t):
        i = rows.index(row)
        return clip(row, t, grpo(row, rows, lambda r: r.reward, False), old_word(row, t, i))

    return per_word(rows, each, "dr", 128)


def golden_rloo(rows):
    def reward(row):
        return row.reward - 0.05 * row.ratio.item()

    def each(row):
        i = rows.index(row)
        old = sum(old_word(row, t, i) for t in range(len(row.words)))
        ratio, advantage = (row.logp - old).exp(), rloo(row, rows, reward)
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)

    return mean(each(row) for row in takes_part(rows))


def golden_reinforce(rows):
    return mean(-row.reward * row.logp for row in takes_part(rows))


def gaps(row):
    return [(p - q).item() for p, q in zip(row.fixed, row.words, strict=True)]


def golden_iw_opd(rows):
    def each(row, t):
        size = [abs(g) for g in gaps(row)]
        weight = 1 + 0.5 * (1 - sum(size[:t]) / sum(size))
        return -gaps(row)[t] * weight * row.words[t]

    return per_word(rows, each, "token")


GOLDEN = {
    "grpo": golden_grpo,
    "dapo": golden_dapo,
    "dr_grpo": golden_dr_grpo,
    "rloo": golden_rloo,
    "reinforce": golden_reinforce,
    "iw_opd": golden_iw_opd,
}


def judged_alike(batch):
    """Rewards of 0: what is left are the words' own."""
    return batch.replace(reward=torch.where(batch.reward.isnan(), NAN, 0.0))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_file_computes_the_published_formula(name):
    batch = older(ranked())
    if name == "iw_opd":
        batch = judged_alike(batch)
    compare(of_file(name), GOLDEN[name], batch)


def test_token_level_policy_distillation_needs_no_reward():
    loss, batch = of_file("opd"), ranked()
    student, teacher = models()
    bare = batch.replace(reward=None, group=None)
    got = loss.objective(student(bare), teacher(bare), bare, loss.count(bare))[0]
    rows = read(student, teacher, batch)
    want = sum(-g * w for r in rows for g, w in zip(gaps(r), r.words, strict=True))
    torch.testing.assert_close(got, want / sum(len(r.words) for r in rows))


# ------------------------------------------------------------------ value head, entropy, penalty
def test_ppo_with_its_value_head():
    loss = PolicyGradient(
        GAE(0.9, 0.8), ClippedRatio(), "token", reward_kl=0.05, value=ValueHead(4), value_weight=0.3
    )
    torch.nn.init.normal_(loss.value.weight, generator=torch.Generator().manual_seed(1))
    batch = older(ranked())
    student, teacher = models()
    output = student(batch)
    values = (output.hidden.detach() @ loss.value.weight.double() + loss.value.bias).tolist()
    rows = read(student, teacher, batch)
    policy, error, number = 0.0, 0.0, 0
    for i, row in enumerate(rows):
        if not row.judged:
            continue
        n = len(row.words)
        r = [0.05 * g for g in gaps(row)]
        r[-1] += row.reward
        v = [values[i][t] for t in row.places] + [0.0]
        deltas = [r[k] + 0.9 * v[k + 1] - v[k] for k in range(n)]
        for k in range(n):
            advantage = sum(0.72 ** (s - k) * deltas[s] for s in range(k, n))
            policy = policy + clip(row, k, advantage, old_word(row, k, i))
            error += 0.3 * 0.5 * advantage**2  # the head is to say V + A, and says V
            number += 1
    terms = loss(output, teacher(batch), batch).terms
    assert loss.count(batch) == {"policy": number, "value": number}
    torch.testing.assert_close(terms["policy"], policy)
    assert terms["value"].item() == pytest.approx(error, rel=1e-6)
    terms["value"].backward(retain_graph=True)
    assert loss.value.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in student.parameters())  # it does not move the student
    with pytest.raises(KDError, match="write width: 5"):
        loss(Toy(0, width=5)(batch), teacher(batch), batch)


def test_entropy_and_the_whole_divergence_are_terms_of_their_own():
    loss = PolicyGradient(DrGRPO(), kl=FullKL(), kl_weight=0.3, entropy_weight=0.02)
    batch = ranked()
    student, teacher = models()
    terms = loss(student(batch), teacher(batch), batch).terms
    counted = (batch.targets != IGNORE) & ~batch.reward.isnan()[:, None]
    log_q = student(batch).logits.log_softmax(-1)[counted]
    log_p = teacher(batch).logits.log_softmax(-1)[counted]
    q = log_q.exp()
    torch.testing.assert_close(terms["kl"], 0.3 * (q * (log_q - log_p)).sum())
    torch.testing.assert_close(terms["entropy"], 0.02 * (q * log_q).sum())
    assert loss.count(batch) == dict.fromkeys(("policy", "kl", "entropy"), counted.sum())


@pytest.mark.parametrize("level", ["token", "mean", "product"])
def test_without_a_known_policy_the_ratio_is_one_and_has_the_gradient_of_log_q(level):
    batch = ranked()
    student, teacher = models()
    slopes = []
    for surrogate in (None, ClippedRatio(level=level)):
        loss = PolicyGradient(RLOO(), surrogate, "dr" if level == "token" else "sequence")
        terms = loss(student(batch), None, batch).terms
        slopes.append(torch.autograd.grad(terms["policy"], list(student.parameters())))
    for plain, ratio in zip(*slopes, strict=True):
        if level == "product":  # not divided by the answer's length
            assert (plain - ratio).abs().max() > 1e-3
        else:
            torch.testing.assert_close(plain, ratio)


# ------------------------------------------------------------------ how a step is split
def step(loss, batch, **split):
    student, teacher = models()
    counts, total = loss.count(batch), 0.0
    for part in batch.split(**split):
        objective, output = loss.objective(student(part), teacher(part), part, counts)
        objective.backward()
        total += objective.item()
        assert set(output.terms) == set(counts)
    return total, [p.grad for p in [*student.parameters(), *loss.parameters()]]


def eight():
    lengths = [5, 3, 7, 4, 6, 2, 8, 5] * 2
    reward = torch.linspace(-1, 1, 16).sin().mul(7).frac().tolist()
    return older(answers(lengths, [1] * 16, sorted([*range(8)] * 2), reward))


NAMES = [
    "grpo", "dapo", "dr_grpo", "rloo", "reinforce", "opd", "iw_opd", "ppo", "minillm",
    "gkd_with_reward", "crlft", "distillm2",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_of_eight_prompts_is_four_of_two(name):
    loss = of_file(name)
    if name == "ppo":
        loss.value = ValueHead(4)
    batch = eight()
    batch.source[::2] = Source.TEACHER
    want, slopes = step(loss, batch)
    assert max(s.abs().max() for s in slopes) > 1e-5
    for split in ({"rows": 4}, {"rows": 1}, {"tokens": 20}):
        assert len(batch.split(**split)) > 1
        got, other = step(loss, batch, **split)
        assert got == pytest.approx(want, rel=1e-9)
        loss.zero_grad()
        if name != "ppo":
            for a, b in zip(slopes, other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_gradients_by_finite_differences(name):
    loss, batch = of_file(name), answers([4, 3], [1, 0], [0, 0], [0.0, 1.0], vocab=4)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    other = ModelOutput(torch.randn(2, 4, 4, generator=generator, dtype=torch.float64), Same(4))
    behaviour = torch.full((2, 4), -1.4, dtype=torch.float64)
    batch, counts = batch.replace(behaviour=behaviour), loss.count(batch)

    def value(states):
        return loss.objective(ModelOutput(states, Same(4)), other, batch, counts)[0]

    assert torch.autograd.gradcheck(value, (z,))


def test_reward_and_divergence_together():
    batch = ranked()
    student, teacher = models()
    loss = of_file("gkd_with_reward")
    got = loss.objective(student(batch), teacher(batch), batch, loss.count(batch))[0]
    reward, divergence = PolicyGradient(RLOO()), JensenShannon()
    parts = [
        part.objective(student(batch), teacher(batch), batch, part.count(batch))[0]
        for part in (reward, divergence)
    ]
    torch.testing.assert_close(got, 0.5 * parts[0] + 0.5 * parts[1])


# ------------------------------------------------------------------ given advantages, and refusals
def test_advantages_that_come_with_the_batch_are_taken_as_they_are():
    batch = ranked()
    student, teacher = models()
    loss = PolicyGradient(RLOO(), normalise="dr")
    each = torch.linspace(-1, 1, 8, dtype=torch.float64)
    got = loss(student(batch), None, batch.replace(advantages=each, reward=None, group=None))
    want = -sum(a * row.logp for a, row in zip(each, read(student, teacher, batch), strict=True))
    torch.testing.assert_close(got.terms["policy"], want)
    words = each[:, None].expand(batch.targets.shape)
    again = loss(student(batch), None, batch.replace(advantages=words))
    torch.testing.assert_close(again.terms["policy"], want)


def test_reward_weights():
    batch = ranked()
    student, teacher = models()
    loss = RewardWeighted(beta=0.5)
    rows = [row for row in read(student, teacher, batch) if row.judged]
    weights = [torch.tensor(row.reward / 0.5).exp() for row in rows]
    want = -sum(w * row.logp for w, row in zip(weights, rows, strict=True))
    want = want / sum(w * len(row.words) for w, row in zip(weights, rows, strict=True))
    got = loss.objective(student(batch), None, batch, loss.count(batch))[0]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    kept = [row for row in rows if row.reward >= 0.5]
    filtered = RewardWeighted(beta=None, threshold=0.5)
    got = filtered.objective(student(batch), None, batch, filtered.count(batch))[0]
    want = -sum(row.logp for row in kept) / sum(len(row.words) for row in kept)
    torch.testing.assert_close(got, want)
    with pytest.raises(KDError, match="RewardWeighted needs a reward"):
        loss.count(batch.replace(reward=None))


@pytest.mark.parametrize(
    "make",
    [
        partial(PolicyGradient, GAE()),
        partial(PolicyGradient, RLOO(), value=ValueHead(4)),
        partial(PolicyGradient, RLOO(), reward_kl=-1.0),
        partial(PolicyGradient, RLOO(), length=0),
        partial(PolicyGradient, RLOO(), kl=FullKL(), reference="cached"),
        partial(ClippedRatio, low=1.5),
        partial(ImportanceWeighted, cap=0.0),
        partial(RewardWeighted, beta=0.0),
        partial(GAE, trace=2.0),
        partial(TokenReturn, discount=-1.0),
        partial(Weighted, {}),
    ],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(KDError):
        make()


def test_a_batch_that_lacks_something():
    student, teacher = models()
    batch = ranked()
    with pytest.raises(KDError, match="needs a reward for each row"):
        PolicyGradient(RLOO()).count(batch.replace(reward=None))
    with pytest.raises(KDError, match="number of its group"):
        PolicyGradient(GRPO())(student(batch), None, batch.replace(group=None))
    loss = PolicyGradient(Reinforce(), reward_kl=1.0, reference="cached")
    whole = batch.replace(reference=torch.zeros(8))
    with pytest.raises(KDError, match="of each word"):
        loss(student(batch), None, whole)
    loss = PolicyGradient(RLOO(), entropy_weight=0.1).eval()
    plain = batch.replace(reward=None, group=None)
    assert loss.count(plain) == {"policy": 0, "entropy": 0}
    assert loss(student(plain), None, plain).terms == {"policy": 0, "entropy": 0}


def test_beside_a_divergence_there_is_one_projection_for_each():
    """A sum hands each part the tokens it counts, and shows them once."""
    batch = ranked()
    student, teacher = models()
    loss = Weighted({"kl": Term(ReverseKL()), "pg": Term(PolicyGradient(RLOO()), 2.0)})
    seen = []
    got, output = loss.objective(
        student(batch), teacher(batch), batch, loss.count(batch),
        watch=lambda tokens, places: seen.extend(places.tolist()),
    )  # fmt: skip
    assert set(output.terms) == {"kl", "pg"}
    assert sorted(seen) == (batch.targets != IGNORE).flatten().nonzero().squeeze(-1).tolist()
