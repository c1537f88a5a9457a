"""PPO's file in plain loops, on answers of an older policy with what its value head expected."""

import math

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.advantages import GAE, Reinforce
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.losses.surrogates import ClippedRatio, ScoreFunction
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import Progress
from tests.losses.judged import models, ranked, read
from tests.losses.test_policy import clip, of_file, old_word, older, per_word, takes_part


def expected(batch):
    """Values of an earlier head, other ones at every place."""
    generator = torch.Generator().manual_seed(8)
    shape = batch.targets.shape
    return batch.replace(values=torch.randn(shape, generator=generator, dtype=torch.float64))


def ppo():
    loss = of_file("ppo")
    loss.value = ValueHead(4)
    torch.nn.init.normal_(loss.value.weight, generator=torch.Generator().manual_seed(2))
    return loss


def golden(rows, batch, values):
    """Policy and value parts; the reward's penalty is about the policy that drew the words."""

    def advantages(row):
        i, last = rows.index(row), len(row.words) - 1
        before = [float(batch.values[i, place]) for place in row.places]
        earned = [
            -0.05 * (old_word(row, t, i) - float(row.fixed[t])) + (row.reward if t == last else 0.0)
            for t in range(last + 1)
        ]
        found, carry = [0.0] * (last + 1), 0.0
        for t in range(last, -1, -1):
            behind = before[t + 1] if t < last else 0.0
            carry = earned[t] + behind - before[t] + 0.95 * carry
            found[t] = carry
        return found, [a + v for a, v in zip(found, before, strict=True)]

    made = {id(row): advantages(row) for row in takes_part(rows)}

    def policy(row, t):
        return clip(row, t, made[id(row)][0][t], old_word(row, t, rows.index(row)))

    def value(row, t):
        now = values[rows.index(row), row.places[t]]
        return 0.5 * 0.5 * (now - made[id(row)][1][t]) ** 2

    return per_word(rows, policy, "token"), per_word(rows, value, "token")


def test_the_file_computes_the_published_formula():
    batch, loss = expected(older(ranked())), ppo()
    student, teacher = models()
    output = student(batch)
    want = golden(read(student, teacher, batch), batch, loss.value(output.hidden))
    got = loss(output, teacher(batch), batch).terms
    counts = loss.count(batch)
    for name, value in zip(("policy", "value"), want, strict=True):
        torch.testing.assert_close(got[name] / counts[name], value, check_dtype=False)
    leaves = [*student.parameters()]
    for a, b in zip(
        torch.autograd.grad(got["policy"] / counts["policy"], leaves, retain_graph=True),
        torch.autograd.grad(want[0], leaves, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    (slope,) = torch.autograd.grad(got["value"] / counts["value"], loss.value.weight)
    (wanted,) = torch.autograd.grad(want[1], loss.value.weight)
    torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("what", ["values", "policy"])
def test_both_come_from_the_moment_that_drew(what):
    """The present head's values, or the present policy's penalty, are another loss."""
    batch, loss = expected(older(ranked())), ppo()
    student, teacher = models()
    terms = loss(student(batch), teacher(batch), batch).terms
    if what == "policy":
        loss.reward_policy = "present"
    changed = batch.replace(values=None) if what == "values" else batch
    others = loss(student(changed), teacher(changed), changed).terms
    assert abs(terms["policy"] - others["policy"]) > 1e-3


def test_what_a_loss_remembers_is_what_its_head_says():
    loss, batch = ppo(), ranked()
    student, _ = models()
    output = student(batch)
    found = loss.remember(output, batch)
    torch.testing.assert_close(found["values"], loss.value(output.hidden))
    assert loss.remembers and Weighted({"p": Term(loss)}).remembers
    both = Weighted({"p": Term(loss)}).remember(output, batch)
    torch.testing.assert_close(both["values"], found["values"])
    assert not of_file("grpo").remembers and of_file("grpo").remember(output, batch) == {}
    with pytest.raises(KDError, match="GAE and a value head"):
        PolicyGradient(GAE())


@pytest.mark.parametrize("level", ["token", "mean", "product"])
def test_what_the_clip_took_away_is_counted_over_micro_batches(level):
    batch = older(ranked())
    student, teacher = models()
    loss = PolicyGradient(Reinforce(0.4), ClippedRatio(level=level))
    loss.begin_step(Progress(0, 1))
    assert loss.measured() == {}
    for part in batch.split(rows=2):
        loss(student(part), teacher(part), part)
    taken, words = 0, 0
    for i, row in enumerate(read(student, teacher, batch)):
        if not row.judged:
            continue
        gaps = [float(w) - old_word(row, t, i) for t, w in enumerate(row.words)]
        whole = sum(gaps) / (len(gaps) if level == "mean" else 1)
        for gap in gaps:
            ratio = math.exp(gap if level == "token" else whole)
            taken += ratio > 1.2 if row.reward > 0.4 else ratio < 0.8
            words += 1
    assert loss.measured()["clipped"].tolist() == [taken, words]
    assert 0 < taken < words
    assert Weighted({"p": Term(loss)}).measured()["p/clipped"].tolist() == [taken, words]
    assert PolicyGradient(Reinforce(), ScoreFunction()).measured() == {}
    loss.eval()
    loss(student(batch), teacher(batch), batch)
    assert loss.measured()["clipped"].tolist() == [taken, words], "validation was counted"
