"""Cross-entropy on words."""

import torch
from torch.nn.functional import cross_entropy

from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.types import Source
from tests.losses.kit import Toy, four_rows, from_logits, one_row, pair, total


def test_equals_the_weighted_mean_over_given_words():
    student, batch = Toy(0), four_rows()
    loss = CrossEntropy()
    got = total(loss, student(batch), None, batch) / loss.count(batch)["ce"]
    given = (batch.source != Source.STUDENT)[:, None] * (batch.weights > 0)
    each = cross_entropy(student(batch).logits[given], batch.targets[given], reduction="none")
    weights = batch.weights[given].double()
    torch.testing.assert_close(got, (weights * each).sum() / weights.sum())


def test_the_students_own_words_are_not_learned():
    student, batch = Toy(0), four_rows()
    batch.source[:] = Source.STUDENT
    assert CrossEntropy().count(batch)["ce"] == 0
    got = total(CrossEntropy(), student(batch), None, batch)
    got.backward()
    assert got == 0
    assert student.head.layer.weight.grad.eq(0).all()


def test_over_all_rows_of_the_student():
    z, _ = pair(vocab=12)
    batch = one_row(6, 9)
    got = total(CrossEntropy(), from_logits(z, 9), None, batch)
    torch.testing.assert_close(got, cross_entropy(z, batch.targets[0], reduction="sum"))


def test_finite_at_logit_spread_of_ten_thousand_in_half_precision():
    z, _ = pair(vocab=17, scale=1e4, dtype=torch.bfloat16)
    got = total(CrossEntropy(), from_logits(z), None, one_row(6, 17))
    got.backward()
    assert got.isfinite()
    assert got.dtype == torch.float32
    assert z.grad.isfinite().all()
