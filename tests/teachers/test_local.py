"""A frozen teacher: own precision, no gradients, never in training mode."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Batch, Signal

NOTHING: frozenset[Signal] = frozenset()


def batch() -> Batch:
    ids = torch.arange(4, 44).reshape(2, 20)
    ones = torch.ones_like(ids)
    zero = torch.zeros(2, dtype=torch.long)
    return Batch(ids, ones, ids.roll(-1, 1), ones.float(), zero, zero)


def made(path: str, **how) -> LocalTeacher:
    teacher = LocalTeacher(path, **how)
    teacher.materialize(torch.device("cpu"))
    return teacher


def test_nothing_is_loaded_before_it_is_materialized(tmp_path):
    teacher = LocalTeacher(str(tmp_path / "nowhere"))
    with pytest.raises(KDError, match="there is no folder"):
        teacher.materialize(torch.device("cpu"))


def test_states_carry_no_gradient_and_training_mode_does_not_last(tiny_teacher):
    teacher = made(tiny_teacher)
    first = teacher.forward(batch(), NOTHING)
    assert first.hidden.is_inference() and not first.hidden.requires_grad
    teacher.model.train()
    assert torch.equal(teacher.forward(batch(), NOTHING).hidden, first.hidden)
    assert not teacher.model.training


def test_computes_in_its_own_precision_under_autocast(tiny_teacher):
    teacher = made(tiny_teacher, dtype="float32")
    plain = teacher.forward(batch(), NOTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = teacher.forward(batch(), NOTHING)
        assert under.logits.dtype == torch.float32 and torch.equal(under.logits, plain.logits)
    half = made(tiny_teacher, dtype="bfloat16").forward(batch(), NOTHING)
    assert half.hidden.dtype == torch.bfloat16 and not torch.equal(
        half.hidden.float(), plain.hidden
    )


def test_each_attention_gives_the_same_states(tiny_teacher):
    one, two = (
        made(tiny_teacher, attention=a).forward(batch(), NOTHING) for a in ("sdpa", "eager")
    )
    torch.testing.assert_close(one.hidden, two.hidden, atol=1e-4, rtol=1e-4)
