"""What holds for every loss, whatever it compares."""

import pytest
import torch

from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import Source
from tests.losses.kit import LOSSES, Toy, build, four_rows, rows_for, total

every = pytest.mark.parametrize("cls", LOSSES, ids=lambda c: c.__name__)


def models(dtype=torch.float64):
    return Toy(0, width=4, dtype=dtype), Toy(1, width=6, dtype=dtype).requires_grad_(False)


def step(loss, batch, dtype=torch.float64, **split):
    """One optimizer step's terms and gradients, as the Distiller normalises them."""
    student, teacher = models(dtype)
    counts = loss.count(batch)
    values = dict.fromkeys(counts, torch.zeros((), dtype=dtype))
    for part in batch.split(**split):
        output = loss(student(part), teacher(part), part)
        assert set(output.terms) == set(counts)
        terms = {name: term / counts[name] for name, term in output.terms.items()}
        sum(terms.values()).backward()
        values = {name: values[name] + terms[name].detach() for name in terms}
    return values, [p.grad for p in student.parameters()]


@every
@pytest.mark.parametrize("split", [{"rows": 1}, {"rows": 2}, {"rows": 3}, {"tokens": 8}], ids=str)
def test_how_a_batch_is_split_changes_nothing(cls, split):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        loss, batch = build(cls), rows_for(cls)
        want, want_slopes = step(loss, batch, dtype)
        got, slopes = step(loss, batch, dtype, **split)
        for name in want:
            assert abs(got[name] - want[name]) <= tolerance * max(1.0, abs(want[name].item()))
        for a, b in zip(slopes, want_slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_terms_that_count_different_tokens_keep_their_own_denominator():
    loss = Weighted({"ce": Term(CrossEntropy(), 0.3), "kl": Term(ForwardKL(), 0.7)})
    batch = four_rows()
    counts = loss.count(batch)
    gold = batch.source != Source.STUDENT
    assert counts["kl"] == batch.weights.sum()
    assert counts["ce"] == batch.weights[gold].sum()
    assert counts["ce"] < counts["kl"]
    want, _ = step(loss, batch)
    for rows in (1, 2):
        got, _ = step(loss, batch, rows=rows)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    student, teacher = models()
    means = [  # what dividing each micro-batch by its own count gives
        sum((v / loss.count(part)[k].clamp_min(1)).item() for k, v in output.terms.items())
        for part in batch.split(rows=1)
        for output in [loss(student(part), teacher(part), part)]
    ]
    assert abs(sum(means) / len(means) - sum(want.values()).item()) > 1e-2


@every
def test_two_halves_make_the_whole(cls):
    student, teacher = models()
    loss, batch = build(cls), rows_for(cls)
    whole = loss(student(batch), teacher(batch), batch).terms
    parts = [loss(student(p), teacher(p), p).terms for p in batch.split(rows=2)]
    counts = [loss.count(p) for p in batch.split(rows=2)]
    for name in whole:
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
        assert counts[0][name] + counts[1][name] == loss.count(batch)[name]


@every
def test_positions_that_do_not_count_do_not_matter(cls):
    student, teacher = models()
    loss, batch = build(cls), rows_for(cls)
    want = total(loss, student(batch), teacher(batch), batch)
    ignored = batch.weights == 0
    assert ignored.any()
    moved, elsewhere = student(batch), teacher(batch)
    moved.hidden = moved.hidden.masked_fill(ignored[..., None], 1e4)
    elsewhere.hidden = elsewhere.hidden.masked_fill(ignored[..., None], float("nan"))
    assert torch.equal(total(loss, moved, elsewhere, batch), want)
    batch.weights = batch.weights.masked_fill(ignored, 5.0)  # the targets alone exclude them
    torch.testing.assert_close(total(loss, student(batch), teacher(batch), batch), want)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_nothing_to_learn_is_exactly_zero_with_a_graph(cls, dtype):
    student, teacher = models(dtype)
    loss, batch = build(cls), rows_for(cls).masked()
    assert all(count == 0 for count in loss.count(batch).values())
    got = total(loss, student(batch), teacher(batch), batch)
    assert got == 0
    assert got.requires_grad
    got.backward()
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.eq(0).all()


def test_a_mean_would_be_not_a_number_there():
    student, teacher = models()
    batch = four_rows().masked()
    loss = ForwardKL()
    assert (total(loss, student(batch), teacher(batch), batch) / loss.count(batch)["kl"]).isnan()


@every
def test_counts_need_no_model_and_carry_no_gradient(cls):
    counts = build(cls).count(rows_for(cls))
    assert counts
    for count in counts.values():
        assert count.shape == ()
        assert not count.requires_grad


@every
def test_learning_reduces_it(cls):
    student, teacher = models()
    loss, batch = build(cls), rows_for(cls)
    optimizer = torch.optim.SGD(student.parameters(), lr=2e-3)
    before = total(loss, student(batch), teacher(batch), batch)
    for _ in range(20):
        optimizer.zero_grad()
        total(loss, student(batch), teacher(batch), batch).backward()
        optimizer.step()
    assert total(loss, student(batch), teacher(batch), batch) < before


@every
def test_the_named_term_is_a_word(cls):
    names = list(build(cls).count(rows_for(cls)))
    assert all(name and " " not in name and name not in ("loss", "divergence") for name in names)
