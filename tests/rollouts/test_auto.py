"""The engine that fits: what it depends on, what it says, and that it changes no answer."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.models import recorded
from kd_lightning.rollouts import auto
from kd_lightning.rollouts.auto import Auto, choice
from kd_lightning.rollouts.continuous import ContinuousBatching
from kd_lightning.rollouts.engines import Generate
from kd_lightning.rollouts.from_student import FromStudent
from tests.models.packs import family
from tests.rollouts import kit
from tests.rollouts.test_continuous import draws


@pytest.fixture
def unrecorded(monkeypatch):
    """As if a model's steps could not be recorded and it were large."""
    monkeypatch.setattr(recorded, "possible", lambda *_: False)
    monkeypatch.setattr(auto, "SMALL", 0)


def test_it_is_the_default():
    assert isinstance(FromStudent()._engine, Auto)


def test_recorded_steps_come_first(monkeypatch):
    student = kit.model(kit.folders()[0]).eval()
    assert choice(student, draws(16)) == "its steps are recorded"
    monkeypatch.setattr(recorded, "possible", lambda *_: False)
    assert "parameters" in choice(student, draws(16))
    monkeypatch.setattr(auto, "SMALL", 0)
    assert choice(student, draws(16)) is None


def test_a_student_in_training_is_looked_at_as_it_draws(monkeypatch):
    said = []
    monkeypatch.setattr(auto, "rank_zero_info", said.append)
    student = kit.model(kit.folders()[0]).train()
    Auto().draw(student, draws(16))
    assert said == ["answers are drawn by Generate: its steps are recorded"]
    assert student.training and student.transformer.training


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("few", "fewer than 16 answers"),
        ("before", "changes the scores"),
        ("window", "window"),
        ("capped", "caps its attention"),
        ("penalty", "repetition_penalty"),
        ("autocast", "autocast"),
        ("compiled", "compiled"),
    ],
)
def test_what_continuous_batching_cannot_do_is_left_to_generate(why, told, unrecorded):
    model = family({"window": "mistral", "capped": "gemma2"}.get(why, "llama"), "auto", "auto")
    if why == "penalty":
        model.transformer.generation_config.repetition_penalty = 1.2
    if why == "compiled":
        model.transformer.base_model.layers[0].compile()
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        found = choice(model, draws(15 if why == "few" else 16), list if why == "before" else None)
    assert found is not None and told in found


def test_its_answers_are_those_of_either_engine_and_one_line_says_which(unrecorded, monkeypatch):
    said = []
    monkeypatch.setattr(auto, "rank_zero_info", said.append)
    student = kit.model(kit.folders()[0])
    student.transformer.generation_config.eos_token_id = [2, *range(10, 18)]
    asked = draws(18, temperature=1.0)
    drawn = []
    monkeypatch.setattr(
        ContinuousBatching, "_draw", spied(ContinuousBatching._draw, drawn), raising=True
    )
    engine = Auto(rows=5)
    found = [engine.draw(student, asked) for _ in range(2)][-1]
    assert len(drawn) == 2
    few = engine.draw(student, asked[:6])
    assert len(drawn) == 2
    want = Generate().draw(student, asked)
    assert [d.tokens for d in found] == [d.tokens for d in want]
    assert [d.tokens for d in few] == [d.tokens for d in want[:6]]
    assert len(said) == 2
    assert said[0].startswith("answers are drawn by ContinuousBatching: 18 answers")
    assert said[1].startswith("answers are drawn by Generate: fewer than 16")


def spied(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call
