"""Every method of preference learning against its formula, and what the formulas imply."""

import math
from functools import partial

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.listwise import (
    SoftLabels,
)
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.scores import LogProbability, ScalarHead
from kd_lightning.types import IGNORE, ModelOutput
from tests.losses.judged import NAN, answers, by_group, compare, log_sigmoid, models, ranked, read
from tests.losses.kit import Same, Toy
from tests.losses.test_loss_configs import FILES, parse


def of_file(name):
    return parse(f"--loss={next(p for p in FILES if p.stem == name)}")[2]


# ------------------------------------------------------------------ the formulas, in plain loops
def pairs(group):
    """Every better and worse answer."""
    return [(w, o) for w in group for o in group if w.reward > o.reward]


def over_groups(each, rows):
    """Mean over groups in which somebody is better."""
    groups = [group for group in by_group(rows) if pairs(group)]
    assert len(groups) == 2
    return sum(each(group) for group in groups) / len(groups)


def pairwise(link, rows, total=False):
    def each(group):
        found = [link(w, o) for w, o in pairs(group)]
        return sum(found) / (1 if total else len(found))

    return over_groups(each, rows)


def likelihood(rows, per_answer=False):
    """NLL of the best of each group, alone ones included."""
    best = [group[0] for group in by_group(rows)]
    if per_answer:
        return -sum(row.mean for row in best) / len(best)
    return -sum(row.logp for row in best) / sum(len(row.words) for row in best)


def odds(row):
    p = row.mean.exp()
    return (p / (1 - p)).log()


def dpo(rows, beta=0.1):
    return pairwise(lambda w, o: -log_sigmoid(beta * (w.ratio - o.ratio)), rows)


def dpkd(rows, beta=0.1):
    def score(row):
        return beta * row.ratio / len(row.places)

    return pairwise(lambda w, o: -log_sigmoid(score(w) - score(o)), rows)


def robust(rows, e=0.1, beta=0.1):
    def link(w, o):
        u = beta * (w.ratio - o.ratio)
        return (-(1 - e) * log_sigmoid(u) + e * log_sigmoid(-u)) / (1 - 2 * e)

    return pairwise(link, rows)


def simpo(rows, beta=2.0, gamma=1.0):
    return pairwise(lambda w, o: -log_sigmoid(beta * w.mean - beta * o.mean - gamma), rows)


def cpo(rows, beta=0.1):
    return pairwise(lambda w, o: -log_sigmoid(beta * (w.logp - o.logp)), rows) + likelihood(rows)


def orpo(rows):
    return 0.1 * pairwise(lambda w, o: -log_sigmoid(odds(w) - odds(o)), rows) + likelihood(rows)


def ipo(rows, tau=0.1):
    return pairwise(lambda w, o: (w.ratio - o.ratio - 1 / (2 * tau)) ** 2, rows)


def slic(rows):
    hinge = pairwise(lambda w, o: (1 - (w.logp - o.logp)).clamp_min(0), rows)
    return hinge + 0.1 * likelihood(rows)


def rrhf(rows):
    hinge = pairwise(lambda w, o: (o.mean - w.mean).clamp_min(0), rows, total=True)
    return hinge + likelihood(rows, per_answer=True)


def kto(rows, beta=0.1):
    total, number = 0.0, 0
    for row in rows:
        if not row.judged:
            continue
        others = [r.ratio.detach() for r in rows if r.group == row.group and not r.judged]
        point = beta * max(0.0, float(sum(others) / len(others))) if others else 0.0
        score = beta * row.ratio
        good = row.reward > 0
        total = total + 1 - torch.sigmoid(score - point if good else point - score)
        number += 1
    return total / number


def pro(rows):
    def each(group):
        total = 0.0
        for k, row in enumerate(group[:-1]):
            gaps = [row.reward - worse.reward for worse in group[k + 1 :]]
            own = row.mean * max(gaps)
            others = [worse.mean * g for worse, g in zip(group[k + 1 :], gaps, strict=True)]
            total = total - (own.exp() / (own.exp() + sum(o.exp() for o in others))).log()
        return total

    return over_groups(each, rows) + 0.05 * likelihood(rows, per_answer=True)


def knowpat(rows):
    def each(group):
        means = [row.mean.item() for row in group]
        total, k = 0.0, len(group)
        for i, row in enumerate(group[:-1]):
            mu = (means[i] - min(means)) / (max(means) - min(means))
            lowered = sum((1 + worse.mean.exp()).log() for worse in group[i + 1 :]) / (k - i - 1)
            total = total + mu * ((1 + (-row.mean).exp()).log() + lowered)
        return total / (k - 1)

    return 0.01 * over_groups(each, rows) + likelihood(rows, per_answer=True)


def stable(rows):
    def each(group):
        best = group[0]
        leads = [w.mean - best.mean + 1.4285714 * (best.reward - w.reward) for w in group[1:]]
        return (sum(leads) / len(leads)).clamp_min(0)

    return 0.2 * over_groups(each, rows) + likelihood(rows, per_answer=True)


GOLDEN = {
    "dpo": dpo,
    "spin": dpo,
    "dpkd": dpkd,
    "robust_dpo": robust,
    "ipo": ipo,
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
    "slic": slic,
    "rrhf": rrhf,
    "cyclealign": rrhf,
    "kto": kto,
    "pro": pro,
    "knowpat": knowpat,
    "stable_alignment": stable,
}
every = pytest.mark.parametrize("name", GOLDEN)


@every
def test_the_file_computes_the_published_formula(name):
    compare(of_file(name), GOLDEN[name], ranked())


def test_the_formulas_differ():
    student, teacher = models()
    rows = read(student, teacher, ranked())
    values = {round(golden(rows).item(), 9) for golden in set(GOLDEN.values())}
    assert len(values) == len(set(GOLDEN.values()))


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "robust_dpo"])
def test_a_cached_reference_gives_the_same(name):
    loss, batch = of_file(name), ranked()
    student, teacher = models()
    want = loss(student(batch), teacher(batch), batch).terms["ranking"]
    kept = [float(sum(row.fixed)) for row in read(student, teacher, batch)]
    loss.reference, words = "cached", torch.full(batch.targets.shape, NAN, dtype=torch.float64)
    for i, row in enumerate(read(student, teacher, batch)):
        words[i, row.places] = torch.stack(row.fixed)
    for reference in (torch.tensor(kept, dtype=torch.float64), words):
        got = loss(student(batch), None, batch.replace(reference=reference)).terms["ranking"]
        torch.testing.assert_close(got, want)
    with pytest.raises(KDError, match="reference: cached"):
        loss(student(batch), None, batch)


# ------------------------------------------------------------------ how a step is split
def step(loss, batch, **split):
    student, teacher = models()
    counts, total = loss.count(batch), 0.0
    for part in batch.split(**split):
        objective, output = loss.objective(student(part), teacher(part), part, counts)
        objective.backward()
        total += objective.item()
        assert set(output.terms) == set(counts)
    return total, [p.grad for p in student.parameters()]


def eight():
    """Eight prompts with a pair each, and an answer that nobody judged."""
    lengths = [5, 3, 7, 4, 6, 2, 8, 5] * 3
    group = sorted([*range(8)] * 3)
    rewards = torch.linspace(-1, 1, 24).sin().mul(7).frac().tolist()
    return answers(
        lengths, [1] * 24, group, [NAN if i % 3 == 2 else r for i, r in enumerate(rewards)]
    )


@every
def test_one_batch_of_eight_prompts_is_four_of_two(name):
    loss, batch = of_file(name), eight()
    want, slopes = step(loss, batch)
    for split in ({"rows": 6}, {"rows": 3}, {"rows": 1}, {"tokens": 40}):
        assert len(batch.split(**split)) > 1
        got, other = step(loss, batch, **split)
        assert got == pytest.approx(want, rel=1e-10)
        for a, b in zip(slopes, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_means_over_micro_batches_would_not_be_the_same():
    loss, batch = of_file("dpo"), eight()
    student, teacher = models()
    want, _ = step(loss, batch)
    means = [
        (loss(student(p), teacher(p), p).terms["ranking"] / loss.count(p)["ranking"].clamp_min(1))
        for p in batch.split(rows=15)
    ]
    assert abs(sum(means).item() / len(means) - want) > 1e-3


# ------------------------------------------------------------------ gradients by finite differences
@pytest.mark.parametrize("name", [n for n in GOLDEN if n not in ("kto", "knowpat")])
def test_gradients_by_finite_differences(name):
    loss, batch = of_file(name), answers([4, 3], [1, 0], [0, 0], [0.0, 1.0], vocab=4)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    other = ModelOutput(torch.randn(2, 4, 4, generator=generator, dtype=torch.float64), Same(4))
    counts = loss.count(batch)

    def value(states):
        return loss.objective(ModelOutput(states, Same(4)), other, batch, counts)[0]

    assert torch.autograd.gradcheck(value, (z,))


def test_what_nobody_judged_takes_no_part():
    student, teacher = models()
    batch = ranked()
    for name in ("dpo", "pro", "orpo", "knowpat", "stable_alignment"):
        loss = of_file(name)
        want = loss(student(batch), teacher(batch), batch).terms
        moved = batch.replace(targets=batch.targets.clone())
        moved.targets[7] = torch.where(batch.targets[7] == IGNORE, IGNORE, 3)
        got = loss(student(moved), teacher(moved), moved).terms
        torch.testing.assert_close(got, want)


def test_a_reward_model_learns_the_order():
    torch.manual_seed(0)
    batch = ranked()
    student = Toy(0, width=6)
    loss = Ranking(ScalarHead(6), Logistic())
    trained = [*student.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        objective, _ = loss.objective(student(batch), None, batch, loss.count(batch))
        objective.backward()
        optimizer.step()
    assert objective < 0.1
    assert student.head.projected == 0  # nothing was projected to the vocabulary
    with pytest.raises(KDError, match="write width: 5"):
        loss(Toy(0, width=5)(batch), None, batch)


# ------------------------------------------------------------------ what is refused
def test_a_batch_without_rewards_or_groups():
    student, teacher = models()
    loss, batch = of_file("dpo"), ranked()
    with pytest.raises(KDError, match="needs a reward for each row"):
        loss.count(batch.replace(reward=None))
    with pytest.raises(KDError, match="number of its group"):
        loss.count(batch.replace(group=None))
    of_file("kto").count(batch.replace(group=None))
    loss.eval()  # ordinary rows of a validation
    plain = batch.replace(reward=None, group=None)
    counts = loss.count(plain)
    assert counts == {"ranking": 0}
    seen = []
    objective, output = loss.objective(
        student(plain), teacher(plain), plain, counts, watch=lambda t, p: seen.append(len(p))
    )
    assert objective == 0 and set(output.terms) == {"ranking"}
    assert sum(seen) == (plain.targets != IGNORE).sum()


@pytest.mark.parametrize(
    "make",
    [
        partial(Ranking, LogProbability(), Logistic(), beta=0.0),
        partial(Ranking, LogProbability(), Logistic(), sft_weight=-1.0),
        partial(Ranking, LogProbability(), Logistic(), weight=math.inf),
        partial(Logistic, label_smoothing=0.5),
        partial(SoftLabels, temperature=0.0),
    ],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(KDError):
        make()


def test_who_looks_on_sees_every_word_once():
    loss, batch = of_file("dpo"), ranked()
    student, teacher = models()
    seen = []
    loss.objective(
        student(batch), teacher(batch), batch, loss.count(batch),
        watch=lambda tokens, places: seen.extend(places.tolist()),
    )  # fmt: skip
    assert sorted(seen) == (batch.targets != IGNORE).flatten().nonzero().squeeze(-1).tolist()
