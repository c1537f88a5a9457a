"""What every rollout keeps: shapes, names, sources, and the same words however rows are spread."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.reliability.checkpoint_io import plain
from kd_lightning.types import IGNORE, Progress, Source
from tests.rollouts import kit

DRAWING = [cls for cls in kit.ROLLOUTS if kit.one(cls).makes_text]


def test_discovery_found_them():
    names = {cls.__name__ for cls in kit.ROLLOUTS}
    assert {"FromData", "FromStudent", "FromTeacher", "Mixed", "TeacherMixed", "Speculative",
            "Replay", "Beside"} <= names  # fmt: skip


@pytest.mark.parametrize("cls", DRAWING)
def test_a_batch_of_answers(cls):
    rows = kit.batch(fillers=1)
    made = kit.roll(kit.one(cls), rows)
    assert len(made.examples) == len(made.answers) == len(made) - 1
    assert made.ids[-1] == "" and (made.targets[-1] == IGNORE).all()
    assert set(made.ids) == set(rows.ids)
    assert made.group is not None and made.group.tolist() == sorted(made.group.tolist())
    counted = made.targets != IGNORE
    assert (made.weights[counted] > 0).all() and (made.weights[~counted] == 0).all()
    for i, answer in enumerate(made.answers):
        told = made.targets[i][counted[i]].tolist()
        assert tuple(told) == answer.tokens
        length = made.lengths[i]
        assert made.attention_mask[i].sum() == length
        nothing_behind = made.attention_mask[i, length:].sum() == 0
        assert nothing_behind


@pytest.mark.parametrize("cls", DRAWING)
def test_the_same_words_however_the_rows_are_spread(cls):
    chosen = kit.examples()
    whole = kit.texts(kit.roll(kit.one(cls), kit.batch(chosen)))
    parts = {}
    for some in (chosen[4:], chosen[1:4][::-1], chosen[:1]):
        parts |= kit.texts(kit.roll(kit.one(cls), kit.batch(some, fillers=1)))
    parts.pop("", None)
    assert parts == whole


@pytest.mark.parametrize("cls", DRAWING)
def test_another_step_another_seed_other_words(cls):
    def words(step, seed):
        return kit.texts(kit.roll(kit.one(cls), kit.batch(), Progress(step, 10), seed))

    assert words(3, 5) == words(3, 5)
    assert words(4, 5) != words(3, 5) != words(3, 6)


@pytest.mark.parametrize("cls", DRAWING)
def test_hard_labels_never_count_the_students_words(cls):
    made = kit.roll(kit.one(cls), kit.batch())
    own = made.source == Source.STUDENT
    assert CrossEntropy().counted(made)[own].sum() == 0
    given = made.source != Source.STUDENT
    assert CrossEntropy().counted(made)[given].sum() == made.weights[given].sum()


@pytest.mark.parametrize("cls", kit.ROLLOUTS)
def test_its_state_is_plain_and_brings_it_back(cls):
    first = kit.one(cls)
    for step in range(3):
        kit.roll(first, kit.batch(), Progress(step, 10))
    kept = plain(first.state_dict())
    second = kit.one(cls)
    second.load_state_dict(kept)
    again = [kit.texts(kit.roll(x, kit.batch(), Progress(3, 10))) for x in (first, second)]
    assert again[0] == again[1]
    assert plain(first.state_dict()) == plain(second.state_dict())


@pytest.mark.parametrize("cls", [c for c in kit.ROLLOUTS if kit.one(c).knows_behaviour])
def test_behaviour_is_there_where_words_are(cls):
    made = kit.roll(kit.one(cls), kit.batch())
    assert made.behaviour is not None
    where = made.targets != IGNORE
    assert (made.behaviour[where] < 0).all() and (made.behaviour[~where] == 0).all()


@pytest.mark.parametrize("cls", DRAWING)
def test_no_row_at_all_is_no_error(cls):
    rows = kit.batch(kit.examples(1), fillers=1).rows(1, 2)
    made = kit.roll(kit.one(cls), rows.replace(examples=(), ids=("",)))
    assert (made.targets == IGNORE).all() and torch.isfinite(made.weights).all()
