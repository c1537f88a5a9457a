"""Several losses at once."""

import pytest
import torch

from kd_lightning.losses.base import Loss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.taid import TAID
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.schedules import Linear
from kd_lightning.types import LossOutput, Progress, Signal
from tests.losses.kit import Toy, four_rows


class Parts(Loss):
    """Not on tokens: two terms and a log; keeps what it was told."""

    needs = frozenset({Signal.HIDDEN})

    def __init__(self):
        super().__init__()
        self.told = []

    def count(self, batch):
        return {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}

    def forward(self, student, teacher, batch):
        size = student.hidden.square().sum()
        return LossOutput({"a": size, "b": 3 * size}, {"seen": size.detach()})

    def end_step(self, values):
        self.told.append({name: value.item() for name, value in values.items()})


@pytest.fixture
def setting():
    return Toy(0, width=4), Toy(1, width=6).requires_grad_(False), four_rows()


def test_each_term_equals_the_loss_on_its_own(setting):
    student, teacher, batch = setting
    terms = {
        "ce": (CrossEntropy(), 0.5),
        "soft": (ForwardKL(2.0, True), 2.0),
        "r": (ReverseKL(), -1.0),
    }
    loss = Weighted({name: Term(*term) for name, term in terms.items()})
    got = loss(student(batch), teacher(batch), batch).terms
    assert list(got) == list(loss.count(batch)) == ["ce", "soft", "r"]
    for name, (alone, weight) in terms.items():
        own = alone(student(batch), teacher(batch), batch).terms[alone.name]
        torch.testing.assert_close(got[name], weight * own)
        assert loss.count(batch)[name] == alone.count(batch)[alone.name]


def test_terms_on_tokens_share_one_projection(setting):
    student, teacher, batch = setting
    loss = Weighted(
        {"ce": Term(CrossEntropy()), "kl": Term(ForwardKL()), "j": Term(JensenShannon())}
    )
    loss(student(batch), teacher(batch), batch)
    counted = int((batch.weights > 0).sum())
    assert student.head.projected == counted
    assert teacher.head.projected == counted


def test_a_teacher_that_nobody_reads_is_not_projected(setting):
    student, teacher, batch = setting
    Weighted({"ce": Term(CrossEntropy())})(student(batch), teacher(batch), batch)
    assert teacher.head.projected == 0
    Weighted({"ce": Term(CrossEntropy())})(student(batch), None, batch)


def test_terms_of_terms(setting):
    student, teacher, batch = setting
    inner = Weighted({"kl": Term(ForwardKL(), 0.5), "ce": Term(CrossEntropy(), 0.5)})
    loss = Weighted(
        {"mix": Term(inner, 2.0), "rkl": Term(ReverseKL()), "parts": Term(Parts(), 10.0)}
    )
    output = loss(student(batch), teacher(batch), batch)
    assert list(output.terms) == ["mix/kl", "mix/ce", "rkl", "parts/a", "parts/b"]
    assert set(loss.count(batch)) == set(output.terms)
    assert list(output.logs) == ["parts/seen"]
    alone = inner(student(batch), teacher(batch), batch).terms
    torch.testing.assert_close(output.terms["mix/kl"], 2 * alone["kl"])
    torch.testing.assert_close(output.terms["parts/a"], 10 * output.logs["parts/seen"])
    assert loss.needs == {Signal.LOGITS, Signal.HIDDEN}
    single = Weighted({"outer": Term(Weighted({"inner": Term(ForwardKL())}))})
    assert list(single.count(batch)) == ["outer"]


def sums_within_sums():
    deepest = Weighted({"j": Term(JensenShannon(), 3.0), "parts": Term(Parts(), 0.1)})
    inner = Weighted({"ce": Term(CrossEntropy(), 0.5), "deepest": Term(deepest, -0.5)})
    return Weighted(
        {"kl": Term(ForwardKL(2.0)), "inner": Term(inner, Linear(2.0, 0.0)), "r": Term(ReverseKL())}
    )


def test_sums_within_sums_share_one_projection(setting):
    student, teacher, batch = setting
    loss = sums_within_sums()
    loss(student(batch), teacher(batch), batch)
    counted = int((batch.weights > 0).sum())
    assert student.head.projected == teacher.head.projected == counted
    loss.objective(student(batch), teacher(batch), batch, loss.count(batch))
    assert student.head.projected == teacher.head.projected == 2 * counted


def test_the_objective_of_sums_within_sums(setting):
    student, teacher, batch = setting
    loss = sums_within_sums()
    loss.begin_step(Progress(5, 10))
    counts = loss.count(batch)
    assert list(counts) == ["kl", "inner/ce", "inner/deepest/j", "inner/deepest/parts/a",
                            "inner/deepest/parts/b", "r"]  # fmt: skip
    found = []
    for objective in (loss.objective, lambda *x: Loss.objective(loss, *x)):
        total, output = objective(student(batch), teacher(batch), batch, counts)
        slopes = torch.autograd.grad(total, list(student.parameters()))
        found.append([total, *output.terms.values(), *output.logs.values(), *slopes])
        assert list(output.terms) == list(counts)
        assert list(output.logs) == ["inner/deepest/parts/seen"]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    alone = JensenShannon()(student(batch), teacher(batch), batch).terms["jsd"]
    torch.testing.assert_close(output.terms["inner/deepest/j"], 1.0 * -0.5 * 3.0 * alone)


def test_a_term_is_told_its_own_unweighted_values(setting):
    *_, batch = setting
    parts, taid, off = Parts(), TAID(pace=0.5), TAID(pace=0.5)
    loss = Weighted(
        {
            "parts": Term(parts, 4.0),
            "moving": Term(Weighted({"target": Term(taid, 0.5)}), 0.5),
            "off": Term(off, 0.0),
        }
    )
    loss.count(batch)
    alone = TAID(pace=0.5)
    for value in (3.0, 2.0):
        for each in (loss, alone):
            each.begin_step(Progress(0, 100))
        names = {"parts/a": 8.0, "parts/b": 4.0, "moving": 0.25 * value, "off": 0.0, "more": 1.0}
        loss.end_step({name: torch.tensor(v) for name, v in names.items()})
        alone.end_step({"taid": torch.tensor(value)})
    assert parts.told == [{"a": 2.0, "b": 1.0}] * 2
    assert torch.equal(taid.state, alone.state)
    assert off.t == torch.tensor(0.4)


def test_a_weight_may_follow_the_run(setting):
    student, teacher, batch = setting
    loss = Weighted({"ce": Term(CrossEntropy(), Linear(1.0, 0.0)), "kl": Term(ForwardKL(), 1.0)})
    seen = []
    for progress in (None, Progress(0, 10), Progress(5, 10), Progress(10, 10)):
        if progress:
            loss.begin_step(progress)
        seen.append(loss(student(batch), teacher(batch), batch).terms["ce"].item())
    assert seen[0] == seen[1]
    assert seen[2] == pytest.approx(seen[0] / 2)
    assert seen[3] == 0
    assert loss.weights() == {"ce": 0.0, "kl": 1.0}


def test_schedules_reach_the_losses_within():
    inner = Weighted({"kl": Term(ForwardKL(), Linear(0.0, 1.0))})
    taid = TAID()
    outer = Weighted({"inner": Term(inner), "taid": Term(taid)})
    outer.begin_step(Progress(5, 10))
    assert inner.weights() == {"kl": 0.5}
    assert taid.t.item() == pytest.approx(0.7)


def test_state_is_saved_under_the_terms_name():
    loss = Weighted({"taid": Term(TAID()), "kl": Term(ForwardKL())})
    assert list(loss.state_dict()) == ["losses.taid.state"]


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({}, "at least one"),
        ({"a/b": Term(ForwardKL())}, "cannot be called 'a/b'"),
        ({"a.b": Term(ForwardKL())}, "cannot be called"),
        ({"keys": Term(ForwardKL())}, "cannot be called 'keys'"),
        ({"kl": Term(ForwardKL(), float("nan"))}, "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(terms, says):
    with pytest.raises(ValueError, match=says):
        Weighted(terms)
