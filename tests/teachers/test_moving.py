"""The student's earlier self: how it moves, and that it comes back from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.models.placement import Placement
from kd_lightning.teachers.moving import MovingAverage
from tests.rollouts import kit


def moved(decay, every=1, steps=3):
    """Teacher and the student's weights after each step, which adds 1 to all of them."""
    student = kit.model(kit.folders()[0])
    teacher = MovingAverage(decay, every)
    teacher.attach(student)
    teacher.materialize(torch.device("cpu"))
    first = next(student.parameters()).detach().clone()
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(1.0)
        teacher.follow(step)
    return student, teacher, next(teacher.model.parameters()).detach() - first


@pytest.mark.parametrize(
    ("decay", "every", "expected"),
    [
        (1.0, 1, 0.0),  # the start
        (0.0, 1, 3.0),  # the student itself
        (0.0, 2, 2.0),  # the student of step 2
        (0.5, 1, 0.5 * 3 + 0.25 * 2 + 0.125 * 1),
    ],
)
def test_it_follows(decay, every, expected):
    _, teacher, difference = moved(decay, every)
    torch.testing.assert_close(difference, torch.full_like(difference, expected))
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_its_state_brings_it_back():
    _, teacher, _ = moved(0.5)
    kept = teacher.state_dict()
    _, other, _ = moved(1.0)
    other.load_state_dict(kept)
    for mine, its in zip(teacher.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    with pytest.raises(KDError, match="holds no moving average of this student"):
        other.load_state_dict({})


def test_what_cannot_be_is_refused():
    for wrong in ({"decay": 1.5}, {"every": 0}):
        with pytest.raises(KDError):
            MovingAverage(**wrong)


@pytest.mark.parametrize(("decay", "words"), [(0.5, "another teacher"), (1.0, "own path, or Adap")])
def test_a_sharded_student_is_refused_with_what_serves_instead(decay, words):
    student = kit.model(kit.folders()[0])
    student.placement = Placement(torch.device("cpu"), in_step=True)
    teacher = MovingAverage(decay)
    teacher.attach(student)
    with pytest.raises(KDError, match=rf"strategy=ddp, or .*{words}"):
        teacher.materialize(torch.device("cpu"))
