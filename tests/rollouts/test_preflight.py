"""What is compared before the first answer, and what is said when answers do not end."""

from __future__ import annotations

import warnings

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.rollouts import watch
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.preflight import check_parts, check_tokens
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Completion, Source
from tests.rollouts import kit


def fresh():
    """A pair of its own, to be spoilt."""
    student, folder = kit.folders()
    teacher = LocalTeacher(folder)
    teacher.materialize(torch.device("cpu"))
    return kit.model(student), teacher


def test_a_pair_of_one_family_passes_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokens(*fresh())


def test_other_ends_are_refused():
    student, teacher = fresh()
    teacher.model.tokenizer.eos_token = "b"
    teacher.model.transformer.generation_config.eos_token_id = 5
    with pytest.raises(KDError, match=r"end with '</s>' \(2\) and the teacher's with 'b' \(5\)"):
        check_tokens(student, teacher)


def test_one_end_more_is_told():
    student, teacher = fresh()
    teacher.model.transformer.generation_config.eos_token_id = [2, 9]
    with pytest.warns(UserWarning, match=r"only one of student and teacher ends .*'f' \(9\)"):
        check_tokens(student, teacher)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("bos_token", "a", "begins a text"),
        ("pad_token", "a", "padding token"),
        ("chat_template", "{{ messages }}", "chat template: None and '{{ messages }}'"),
    ],
)
def test_other_differences_are_told(name, value, said):
    student, teacher = fresh()
    setattr(teacher.tokenizer, name, value)
    with pytest.warns(UserWarning, match=said):
        check_tokens(student, teacher)


def test_a_cache_knows_no_new_words():
    cached = CachedTeacher("nowhere")
    with pytest.raises(KDError, match="CachedTeacher knows the rows of its cache only"):
        check_parts(FromStudent(), cached, ForwardKL())
    check_parts(FromStudent(), cached, CrossEntropy())
    check_parts(FromData(), cached, ForwardKL())


# ---- what is measured -------------------------------------------------------------------------


def said(*tokens: tuple[int, ...], finished: bool = True):
    """A batch whose answers are these."""
    made = kit.roll(FromStudent(sampling=kit.SHORT), kit.batch(kit.examples(len(tokens))))
    return made.replace(answers=tuple(Completion("", t, finished) for t in tokens))


def test_lengths_repetition_and_variety():
    batch = said((1, 2, 3, 4, 1, 2, 3, 4), (5, 6))
    found = watch.table(watch.measured(batch, shares=False))
    assert found["train/rollout/length"] == 5
    assert found["train/rollout/truncated"] == 0
    assert found["train/rollout/repetition"] == pytest.approx(1 / 5)  # 1234 again, of 5 phrases
    assert found["train/rollout/distinct_2"] == pytest.approx(5 / 8)  # 12 23 34 41 56
    assert found["train/rollout/student_share"] == 1
    assert found["train/rollout/shared_tokens"] == 0


def test_answers_that_grow_and_do_not_end_are_explained():
    student, _ = kit.pair()
    rows = kit.batch(kit.examples(2))
    targets = rows.targets.clone()
    targets[targets == 2] = 7  # the data ends with a sign at which nothing stops
    wrong = rows.replace(targets=targets)
    short, long = said((4,) * 5, (5,) * 5), said((4,) * 40, (5,) * 40, finished=False)
    assert (long.source == Source.STUDENT).all()
    for data, cause in ((wrong, "the data's answers end with 'd', at which"), (rows, "no weight")):
        seen = watch.LengthWatch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(watch.FIRST + 3):
                seen(short, data, student)
        with pytest.warns(UserWarning, match=f"from 5 to 40 tokens and 100% .*{cause}"):
            seen(long, data, student)
        with warnings.catch_warnings():  # once
            warnings.simplefilter("error")
            seen(long, data, student)
