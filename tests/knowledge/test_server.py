"""Elicitation through a server: budgets, interruptions, and a key that stands nowhere."""

from __future__ import annotations

import json

import pytest

from kd_lightning.elicit.labeling import Answer
from kd_lightning.knowledge.engine import Elicitation, Seeds
from kd_lightning.teachers.generator import BudgetError
from kd_lightning.teachers.remote.budget import Budget
from kd_lightning.teachers.server import ServerTeacher
from tests.knowledge.kit import seeds
from tests.knowledge.test_engine import card, rows
from tests.teachers.hostile import Act, serving

KEY = "sk-canary-0123456789"


def elicitation(folder, url, count=12, **how):
    path = folder / "seeds.jsonl"
    if not path.exists():
        seeds(path, count)
    settled = {"logprobs": False, "backoff_seconds": 0.01, "concurrency": 3, **how}
    teacher = ServerTeacher(url, "m", key_variable="TEACHER_API_KEY", licence="mit", **settled)
    return Elicitation(
        str(folder / "set"),
        [Answer()],
        {"teacher": teacher},
        Seeds(str(path)),
        said=lambda line: None,
    )


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    return KEY


def test_a_budget_counts_what_was_spent_before(tmp_path, key):
    with serving() as server:
        with pytest.raises(BudgetError, match="same command goes on"):
            elicitation(tmp_path, server.url, budget=Budget(requests=5)).run()
        assert len(server.seen) == 5
        with pytest.raises(BudgetError):  # it is the set's budget, not the process's
            elicitation(tmp_path, server.url, budget=Budget(requests=5)).run()
        assert len(server.seen) == 5
        elicitation(tmp_path, server.url, budget=Budget(requests=12)).run()
        assert len(server.seen) == 12
    assert card(tmp_path)["spend"]["requests"] == 12 == len(rows(tmp_path))


def test_a_server_that_fails_often_gives_the_set_of_one_that_does_not(tmp_path, key):
    def failing(number, seen):
        acts = (Act(429, {}), Act(500, {}), Act(cut=True), Act(body=b"{broken"), Act())
        return acts[number % 5]

    found = {}
    for name, play in (("calm", lambda number, seen: Act()), ("failing", failing)):
        folder = tmp_path / name
        folder.mkdir()
        with serving(play) as server:
            elicitation(folder, server.url, retries=12, backoff_seconds=0.001).run()
        found[name] = [{k: v for k, v in r.items() if k != "lineage"} for r in rows(folder)]
    assert found["calm"] == found["failing"] and len(found["calm"]) == 12


def test_the_key_is_in_no_file(tmp_path, key):
    with serving() as server:
        elicitation(tmp_path, server.url, prices={"m": {"in": 1.0, "out": 2.0}}).run()
        assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.seen)
    assert card(tmp_path)["spend"]["money"] > 0
    assert "TEACHER_API_KEY" in json.dumps(card(tmp_path)["generators"])
    for file in (tmp_path / "set").rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
