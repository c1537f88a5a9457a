"""Runs of other kinds than a student of its own with a teacher in this process."""

from __future__ import annotations

import pytest

from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.skills import Demo, DemoPreference
from kd_lightning.doctor.patient import Patient
from kd_lightning.losses import CrossEntropy, PolicyGradient, Ranking
from kd_lightning.losses.advantages import GAE
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.listwise import PointwiseSigmoid
from kd_lightning.losses.scores import LogRatio
from kd_lightning.losses.surrogates import ClippedRatio
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.rewards import Grade
from kd_lightning.rollouts import FromStudent, Reuse
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.teachers.own import AdapterOff
from kd_lightning.types import Sampling
from tests.doctor.kit import patient, report


def with_data(found: Patient, data: Demo | Mixture) -> Patient:
    found.trainer.connected(found.distiller, data)
    found.data = data
    return found


def adapters(folder):
    spec = StudentSpec(path="demo", lora=LoraSpec(rank=4))
    return patient(folder, student=spec, teacher=AdapterOff())


def cached(folder):
    data = {"train_rows": 10, "validation_rows": 5, "test_rows": 5, "max_length": 64}
    first = with_data(patient(folder), Demo(**data))
    first.trainer.cache(first.distiller, first.data, k=8, output=str(folder / "cache"))
    again = patient(folder, teacher=CachedTeacher(str(folder / "cache")))
    return with_data(again, Demo(batch_size=4, **data))


def mixture(folder):
    data = {"train_rows": 10, "validation_rows": 5, "test_rows": 5, "max_length": 64}
    parts = {"one": Part(Demo(**data)), "two": Part(Demo(row_seed=1, **data))}
    return with_data(patient(folder), Mixture(parts, batch_size=4))


def words_alone(folder):
    found = patient(folder, loss=CrossEntropy())
    found.distiller.teacher = None
    return found


def judged(folder):
    """Answers of the student's own that the skill grades, learned from twice."""
    loss = PolicyGradient(GAE(), ClippedRatio(), reward_kl=0.05, value=ValueHead(16))
    drawn = FromStudent(sampling=Sampling(max_new_tokens=4, temperature=1.0))
    found = patient(folder, loss=loss, rollout=Reuse(drawn, 2), reward=Grade())
    return with_data(found, Demo(batch_size=4, train_rows=10, validation_rows=5, test_rows=5))


def pairs(folder):
    """Two answers to each prompt, compared."""
    found = patient(folder, loss=Ranking(LogRatio(), Logistic()))
    data = DemoPreference(batch_size=3, train_rows=12, validation_rows=5, test_rows=5)
    return with_data(found, data)


def unpaired(folder):
    """Single answers in groups, with mismatched ones beside them."""
    found = patient(folder, loss=Ranking(LogRatio(), PointwiseSigmoid()))
    data = DemoPreference(unpaired=4, batch_size=2, train_rows=12, validation_rows=5, test_rows=5)
    return with_data(found, data)


def average(folder):
    """The student's former selves teach it."""
    spec = StudentSpec(path="demo")
    drawn = FromStudent(sampling=Sampling(max_new_tokens=4, temperature=1.0))
    return patient(folder, student=spec, teacher=MovingAverage(0.5), rollout=drawn)


KINDS = [adapters, cached, mixture, words_alone, judged, pairs, unpaired, average]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_examined_as_well(tmp_path, kind):
    found, printed = report(kind(tmp_path))
    assert not found.problems, printed
    assert "the next step is the same, bit for bit" in printed
    assert not any(c.level == "skipped" for c in found.checked), printed
    assert "knows nothing of these answers" not in printed
