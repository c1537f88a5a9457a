"""VLLMColocated with a vLLM that really runs, in a process of the environment of `make vllm`.

In float32 on a processor, where vLLM has no sleep mode: what is shown is drawing and new weights.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from kd_lightning.rollouts.from_student import FromStudent
from tests.conftest import ROOT
from tests.rollouts import colocated, kit, served
from tests.teachers import servers

pytestmark = pytest.mark.slow

CLOSE = 1e-4
"""float32 of two implementations, in nats a token."""


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    home = tmp_path_factory.mktemp("students")
    return served.save(home / "one", 1), served.save(home / "two", 2)


@pytest.fixture(scope="module")
def found(students, tmp_path_factory):
    """What the other environment's process told."""
    python = servers.vllm_python()
    if not [*python.parents[1].glob("lib/*/site-packages/lightning/__init__.py")]:
        pytest.skip("the vLLM environment does not hold the project's requirements: make vllm")
    folder = tmp_path_factory.mktemp("colocated")
    command = [str(python), "-m", "tests.rollouts.colocated", *students, str(folder)]
    env = {**os.environ, **servers.VLLM, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_greedy_answers_are_those_of_generate_with_each_students_weights(found, students):
    said = []
    for turn, student in enumerate((0, 1, 0)):
        made = found[f"greedy-{turn}"]
        rows = kit.batch(kit.examples(12), fillers=1)
        rollout = FromStudent(2, colocated.HOW["greedy"])
        want = colocated.told(served.roll(rollout, rows, students[student]), students[student])
        assert made["said"] == want["said"] and made["finished"] == want["finished"]
        torch.testing.assert_close(
            torch.tensor(made["behaviour"]), torch.tensor(want["behaviour"]), atol=CLOSE, rtol=0
        )
        said.append(made["said"])
    assert said[0] == said[2] != said[1]


def test_drawn_ones_are_several_and_told_at_temperature_1(found):
    first, again = found["drawn-0"], found["drawn-2"]
    assert first == again, "not repeatable"
    assert any(a != b for a, b in first["said"].values())
    for made in (first, found["drawn-1"]):
        behaviour, own = torch.tensor(made["behaviour"]), torch.tensor(made["own"])
        torch.testing.assert_close(behaviour, own, atol=CLOSE, rtol=0)
    assert first["own"] != found["drawn-1"]["own"]


def test_a_fit_with_it_is_the_fit_with_generate(found):
    """Losses to 2e-4 over four steps in which each answer changes."""
    made, want = found["colocated"], found["generate"]
    assert made["said"] == want["said"]
    assert len({str(sorted(step.values())) for step in want["said"]}) == 4
    assert made["losses"] == pytest.approx(want["losses"], abs=2e-4)
    assert found["stale"] == [0.0] * 4 and max(found["apart"]) < CLOSE


def test_sleeping_is_refused_where_vllm_cannot(found):
    assert "sleep: false" in found["asleep"]
