"""Log-probabilities of words: alike in whichever way they are made, never all logits at once."""

import pytest
import torch

from kd_lightning.losses.advantages import GRPO
from kd_lightning.losses.answers import reference_logprobs, spoken
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.penalties import FullKL
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.scores import LogRatio
from kd_lightning.losses.surrogates import ClippedRatio
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import ModelOutput, SparseTargets
from tests.losses.judged import VOCAB, models, ranked, read
from tests.losses.kit import Toy


def losses():
    return {
        "ranking": Ranking(LogRatio(), Logistic(), beta=0.3, sft_weight=0.5),
        "policy": PolicyGradient(
            GRPO(), ClippedRatio(), reward_kl=0.1, kl=FullKL(), entropy_weight=0.02
        ),
    }


def plain(output):
    """The same output with a head whose tensors are known: fused with the loss."""
    return ModelOutput(output.hidden, LinearHead(output.head.layer, output.head.vocab))


@pytest.mark.parametrize("name", ["ranking", "policy"])
def test_fused_and_step_by_step_are_the_same(name, monkeypatch):
    loss, batch = losses()[name], ranked()
    student, teacher = models()
    counts, found = loss.count(batch), []
    for fused in (False, True):
        for size in (64, 3):  # all tokens at once, or three at a time
            monkeypatch.setattr("kd_lightning.losses.tokens.chunk_rows", lambda *_, n=size: n)
            monkeypatch.setattr("kd_lightning.losses.chunks.chunk_rows", lambda *_, n=size: n)
            mine, other = student(batch), teacher(batch)
            if fused:
                mine, other = plain(mine), plain(other)
            value, _ = loss.objective(mine, other, batch, counts)
            slopes = torch.autograd.grad(value, list(student.parameters()))
            found.append((value.detach(), *slopes))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["ranking", "policy"])
def test_no_logits_of_all_tokens_are_kept(name, fused, monkeypatch):
    loss, batch = losses()[name], ranked()
    student, teacher = Toy(0, 4, rows=500), Toy(1, 6, rows=500).requires_grad_(False)
    student.head.vocab = teacher.head.vocab = 500
    tokens = int(spoken(batch).sum())
    monkeypatch.setattr("kd_lightning.losses.tokens.chunk_rows", lambda *_: 2)
    monkeypatch.setattr("kd_lightning.losses.chunks.chunk_rows", lambda *_: 2)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    mine, other = student(batch), teacher(batch)
    if fused:
        mine, other = plain(mine), plain(other)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value, _ = loss.objective(mine, other, batch, loss.count(batch))
    value.backward()
    whole = student.head.layer.weight.numel()
    assert kept and max(kept) <= whole < tokens * 500
    assert student.embedding.weight.grad.abs().sum() > 0


def test_values_stand_where_the_words_are():
    student, _ = models()
    batch = ranked()
    output = student(batch)
    for made in (output, plain(output)):
        counted = spoken(batch).float()
        words = losses()["policy"].parts
        found = TokenSum(dict(words), made, models()[1](batch), batch, counted=counted).values()
        assert set(found) == {"nll", "whole", "entropy"}
        rows = read(student, models()[1], batch)
        for i, row in enumerate(rows):
            torch.testing.assert_close(-found["nll"][i, row.places], torch.stack(row.words))
        assert all(each[~spoken(batch)].eq(0).all() for each in found.values())


def test_a_reference_that_knows_a_few_ids_knows_the_words_probability():
    student, teacher = models()
    batch = ranked()
    want = reference_logprobs("teacher", teacher(batch), batch)
    where = spoken(batch)
    few = torch.zeros(int(where.sum()), 1, dtype=torch.long)
    sparse = SparseTargets(
        few, few.double(), {1.0: want[where]}, want[where], want[where], vocab=VOCAB
    )
    stored = ModelOutput(torch.empty(0), teacher.head, sparse=sparse)
    got = reference_logprobs("teacher", stored, batch)
    torch.testing.assert_close(got, want)
    assert not got.requires_grad and not want.requires_grad


def test_a_copy_of_the_student_as_reference_leaves_nothing_between_them():
    student, _ = models()
    batch = ranked()
    loss = Ranking(LogRatio(), Logistic())
    got = loss(student(batch), student(batch), batch).terms["ranking"] / 2
    torch.testing.assert_close(got, torch.tensor(2.0, dtype=torch.float64).log())
