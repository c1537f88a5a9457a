"""Statistics of tokens: what they are, in the loss's own pass or in one of their own."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.losses import CrossEntropy, ForwardKL, JensenShannon, Weighted
from kd_lightning.losses.base import Loss
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.losses.weighted import Term
from kd_lightning.metrics.agreement import (
    STATISTICS,
    Statistics,
    grouped_statistics,
    summarise,
    token_statistics,
)
from kd_lightning.types import IGNORE, LossOutput, Source
from tests.kernels.kit import COUNTED, batch, leaves, models
from tests.kernels.test_equals_autograd import Weigh
from tests.losses.few import SUPPORTS, only, sampled, stored
from tests.losses.kit import Toy, four_rows


class Size(Loss):
    """Not on tokens."""

    def count(self, batch):
        return {"size": torch.tensor(1.0)}

    def forward(self, student, teacher, batch):
        return LossOutput({"size": student.hidden.square().sum()})


def nested():
    inner = Weighted({"kl": Term(ForwardKL(2.5), 0.5), "ce": Term(CrossEntropy(), 0.5)})
    return Weighted({"in": Term(inner, 2.0), "jsd": Term(JensenShannon()), "size": Term(Size())})


LOSSES = {
    "kl": ForwardKL,
    "ce": CrossEntropy,
    "tempered": lambda: JensenShannon(temperature=2.5),
    "nested": nested,
    "not on tokens": Size,
    "only others": lambda: Weighted({"a": Term(Size()), "b": Term(Size(), 0.5)}),
    "learns": Weigh,
}
losses = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def two_skills():
    rows = batch()
    rows.skill[:] = torch.tensor([0, 1, 0])
    rows.weights[0, 3] = 0.0  # counted in no loss, but a token of the text
    return rows


def teachers():
    """A student, and every way that its teacher may be given."""
    for how in ({}, {"rows": 11, "vocab": 9, "bias": True, "softcap": 3.0}):
        student, teacher = models(**how)
        few = [only(stored(teacher, batch(), 4, support)) for support in ("tail", "unnormalised")]
        for given in (None, teacher, *few):
            yield student, given


def by_hand(student, teacher, rows, skill):
    """Means over a skill's tokens, one after the other, in plain probabilities."""
    means = dict.fromkeys(STATISTICS[1:], 0.0)
    number = 0
    vocab = min(student.head.vocab, teacher.head.vocab)
    z_s, z_t = student.logits.detach(), teacher.head(teacher.hidden.clone()).detach()
    for row in range(len(rows)):
        for t, y in enumerate(rows.targets[row].tolist()):
            if y == IGNORE or rows.skill[row] != skill:
                continue
            number += 1
            q, p = z_s[row, t, :vocab].softmax(-1), z_t[row, t, :vocab].softmax(-1)
            m = (p + q) / 2
            means["kl"] += (p * (p / q).log()).sum()
            means["reverse_kl"] += (q * (q / p).log()).sum()
            means["jsd"] += ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
            means["agreement"] += float(p.argmax() == q.argmax())
            means["entropy"] -= (q * q.log()).sum()
            means["teacher_entropy"] -= (p * p.log()).sum()
            means["ce"] -= z_s[row, t].log_softmax(-1)[y]
            means["teacher_ce"] -= z_t[row, t].log_softmax(-1)[y]
            means["p_label"] += z_s[row, t].softmax(-1)[y]
            means["teacher_p_label"] += z_t[row, t].softmax(-1)[y]
    return {name: float(value) / number for name, value in means.items()}, number


@pytest.mark.parametrize("how", [{}, {"rows": 11, "vocab": 9, "bias": True}], ids=str)
def test_the_columns_are_what_they_are_called(how):
    student, teacher = models(**how)
    rows = two_skills()
    sums = token_statistics(student, teacher, rows, 2)
    for skill in (0, 1):
        want, number = by_hand(student, teacher, rows, skill)
        found = summarise(sums[skill])
        assert found.pop("tokens") == number
        assert found.pop("perplexity") == pytest.approx(math.exp(want["ce"]))
        assert found.pop("teacher_perplexity") == pytest.approx(math.exp(want["teacher_ce"]))
        assert found == pytest.approx(want)


def test_groups_of_any_kind():
    student, teacher = models()
    rows = two_skills()
    places = torch.arange(6).expand(3, 6)
    both = torch.stack([places, 6 + rows.skill[:, None].expand(3, 6)])
    sums = grouped_statistics(student, teacher, rows, both, 8)
    torch.testing.assert_close(sums[6:], token_statistics(student, teacher, rows, 2))
    torch.testing.assert_close(sums[:6].sum(0), sums[6:].sum(0))
    assert sums[:6, 0].tolist() == (rows.targets != IGNORE).sum(0).tolist()


@losses
def test_the_same_in_the_losss_own_pass(make):
    """And the loss is what it is without them."""
    for student, teacher in teachers():
        loss, rows = make(), two_skills()
        if teacher is None and loss.needs:
            continue
        counts = loss.count(rows)
        want = token_statistics(student, teacher, rows, 2)
        alone, output = loss.objective(student, teacher, rows, counts)
        watch = Statistics.by_skill(rows, 2)
        total, terms = loss.objective(student, teacher, rows, counts, watch=watch)
        assert want[:, 0].tolist() == [8, 4] or want[:, 0].sum() == COUNTED
        torch.testing.assert_close(watch.sums, want, equal_nan=True)
        torch.testing.assert_close(total, alone)
        torch.testing.assert_close(dict(terms.terms), dict(output.terms))
        slopes = [
            torch.autograd.grad(x, leaves(student), allow_unused=True) for x in (total, alone)
        ]
        for a, b in zip(*slopes, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
        torch.testing.assert_close(watch.sums, want, equal_nan=True)  # nothing is seen twice
        with torch.no_grad():
            again = Statistics.by_skill(rows, 2)
            loss.objective(student, teacher, rows, counts, watch=again)
        torch.testing.assert_close(again.sums, want, equal_nan=True)


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("own", [False, True], ids=["fused", "step by step"])
def test_chunks_are_seen_once(chunk, own):
    student, teacher = models()
    for given in (teacher, only(stored(teacher, batch(), 4))):
        watch = Statistics.by_skill(batch(), 1)
        terms = {"kl": ForwardKL(), "ce": CrossEntropy()} | ({"own": Weigh()} if own else {})
        made = TokenSum(terms, student, given, batch(), chunk, watch=watch)
        assert (made.job()[0] is None) == own
        sum(made.terms().values()).backward()
        want = token_statistics(student, given, batch(), 1)
        torch.testing.assert_close(watch.sums, want)
        assert watch.sums[0, 0] == COUNTED


@losses
def test_each_head_is_projected_once(make):
    """Also the teacher's, where only the statistics ask for it."""
    loss, rows = make(), batch()
    rows.source[:] = Source.GOLD
    counts = loss.count(rows)
    for given in ("live", "few"):
        student, teacher = models()
        teacher = teacher if given == "live" else only(stored(teacher, rows, 4))
        heads = 2 * COUNTED * (4 * 11 + (6 * 13 if given == "live" else 0))
        flops = []
        for watch in (None, Statistics.by_skill(rows, 1)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                loss.objective(student, teacher, rows, counts, watch=watch)
            flops.append(counter.get_total_flops())
        assert flops[1] == heads
        assert flops[0] in (0, 2 * COUNTED * 4 * 11, heads)


def test_each_head_is_projected_once_step_by_step():
    student, teacher, rows = Toy(0, width=4), Toy(1, width=6).requires_grad_(False), four_rows()
    watch = Statistics.by_skill(rows, 1)
    loss = nested()
    loss.objective(student(rows), teacher(rows), rows, loss.count(rows), watch=watch)
    counted = int((rows.targets != IGNORE).sum())
    assert student.head.projected == teacher.head.projected == counted == watch.sums[0, 0]


@pytest.mark.parametrize("support", SUPPORTS)
def test_of_a_teacher_on_a_few_ids(support):
    """Divergences over its ids and the tail, whatever the loss compares; the rest is stored."""
    student, teacher = models(bias=True)
    want = summarise(token_statistics(student, teacher, batch(), 1)[0])
    for k in (1, 3, 6, 11):
        few = only(stored(teacher, batch(), k, support))
        found = summarise(token_statistics(student, few, batch(), 1)[0])
        same = ("ce", "entropy", "p_label", "agreement", "teacher_entropy", "tokens", "perplexity")
        assert {n: found[n] for n in same} == pytest.approx({n: want[n] for n in same})
        label = few.sparse.label
        assert found["teacher_ce"] == pytest.approx(-label.mean().item())
        assert found["teacher_p_label"] == pytest.approx(label.exp().mean().item())
        for name in ("kl", "reverse_kl", "jsd"):
            assert found[name] <= want[name] + 1e-12
            if k == 11:
                assert found[name] == pytest.approx(want[name])
        loss = ForwardKL()
        tail = only(replace(few.sparse, support="tail"))
        rows = batch()
        rows.weights = (rows.targets != IGNORE).float()
        assert found["kl"] == pytest.approx(loss(student, tail, rows).terms["kl"].item() / COUNTED)


def test_of_a_sampled_teacher_only_what_is_true():
    student, teacher = models()
    few = sampled(teacher)
    sums = token_statistics(student, few, batch(), 1)
    found = summarise(sums[0])
    assert not {"reverse_kl", "jsd", "agreement"} & set(found)
    share = few.sparse.logits.exp()
    log_q = student.logits.detach()[batch().targets >= 0].log_softmax(-1)
    kl = -(share * log_q).sum().detach() - few.sparse.entropy.sum()
    assert found["kl"] == pytest.approx(float(kl) / COUNTED)
    assert found["teacher_entropy"] == pytest.approx(float(few.sparse.entropy.mean()))
    warm = only(replace(few.sparse, lse={2.0: few.sparse.lse[1.0]}))
    found = summarise(token_statistics(student, warm, batch(), 1)[0])
    assert not {"kl", "reverse_kl", "jsd", "agreement", "teacher_entropy"} & set(found)
    assert found["teacher_ce"] == pytest.approx(0.0)


def test_a_temperature_of_one_that_is_not_stored_leaves_divergences_out():
    student, teacher = models()
    few = only(stored(teacher, batch(), 4, temperatures=(2.5,)))
    found = summarise(token_statistics(student, few, batch(), 1)[0])
    assert {"agreement", "teacher_ce", "ce"} < set(found)
    assert not {"kl", "reverse_kl", "jsd"} & set(found)


def test_what_is_not_a_number_is_shown():
    """Left out is what a teacher cannot tell, not what went wrong."""
    student, teacher = models()
    for broken in (replace(student, hidden=student.hidden * math.nan), student):
        given = (
            teacher if broken is not student else replace(teacher, hidden=teacher.hidden * math.nan)
        )
        found = summarise(token_statistics(broken, given, batch(), 1)[0])
        assert math.isnan(found["kl"]) and math.isnan(found["jsd"])


def test_no_token_at_all():
    student, teacher = models()
    nothing = batch().masked()
    student, teacher = (replace(m, hidden=m.hidden[:1].clone()) for m in (student, teacher))
    loss, watch = nested(), Statistics.by_skill(nothing, 1)
    total, _ = loss.objective(student, teacher, nothing, loss.count(nothing), watch=watch)
    assert watch.sums.eq(0).all() and total.requires_grad
    assert summarise(watch.sums[0]) == {"tokens": 0.0}
