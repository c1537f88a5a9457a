"""R1, R2: killed at any step, or during a save, and resumed: the same run, bit for bit."""

from __future__ import annotations

import random
import signal

import pytest

from kd_lightning.reliability import commit
from tests.faults.parts import trace
from tests.faults.victim import EPOCH, STEPS

VARIANTS = ("sft", "kl", "taid", "dropout", "accumulate", "on_policy", "gkd", "rlaif", "ppo")


def finish(victims, folder, **job):
    code = victims.run(folder, **job)
    assert code == 0, (folder / "said.txt").read_text()[-3000:]


def test_dropout_is_at_work_and_rows_come_once_an_epoch(undisturbed):
    kinds = ("sft", "dropout", "gkd", "rlaif")
    losses = [{t["loss"] for t in undisturbed(v)[0].values()} for v in kinds]
    assert all(len(values) == STEPS for values in losses)
    rows = [i for s, t in undisturbed("kl")[0].items() if s <= EPOCH for i in t["ids"]]
    assert len(rows) == len(set(rows)) == 3 * EPOCH


@pytest.mark.parametrize(
    ("variant", "step"), zip(VARIANTS, (3, 6, 9, 7, 11, 8, 5, 10, 6), strict=True)
)
def test_r1_killed_at_a_step(victims, tmp_path, tiny_teacher, same, variant, step):
    job = {"variant": variant, "teacher": tiny_teacher}
    assert victims.run(tmp_path / "run", kill_at=step, **job) == -signal.SIGKILL
    found = commit.newest(tmp_path / "run/checkpoints")
    assert (found.step if found else 0) >= step - 4  # 2, and 2 of a save cut short
    finish(victims, tmp_path / "run", **job)
    same(tmp_path / "run", variant)


def test_r1_killed_again_and_again_with_workers(victims, tmp_path, tiny_teacher, same):
    job = {"variant": "kl", "teacher": tiny_teacher, "workers": 1}
    for step in (1, 5, 7, 8):
        assert victims.run(tmp_path / "run", kill_at=step, **job) == -signal.SIGKILL
    finish(victims, tmp_path / "run", **job)
    same(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(20))
def test_r1_twenty_random_steps(victims, tmp_path, tiny_teacher, same, variant, seed):
    draw = random.Random(seed)
    job = {"variant": variant, "teacher": tiny_teacher, "every": draw.choice([1, 2, 3, 5])}
    job["asynchronous"] = draw.random() < 0.7
    for step in sorted(draw.sample(range(STEPS), draw.choice([1, 2]))):
        assert victims.run(tmp_path / "run", kill_at=step, **job) == -signal.SIGKILL
    finish(victims, tmp_path / "run", **job)
    same(tmp_path / "run", variant)


def killed_in_save(victims, folder, teacher, moment, **more):
    job = {"variant": "kl", "teacher": teacher, **more}
    code = victims.run(folder, kill_in_save=moment, **job)
    for found in commit.committed(folder / "checkpoints"):
        assert commit.problem(found.path) is None  # the old or the new, never a mixture
    finish(victims, folder, **job)
    return code


@pytest.mark.parametrize("moment", [3, 30, 47])
def test_r2_killed_during_a_save(victims, tmp_path, tiny_teacher, same, moment):
    code = killed_in_save(victims, tmp_path / "run", tiny_teacher, moment, asynchronous=False)
    assert code == -signal.SIGKILL
    same(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_r2_killed_at_every_moment_of_a_save(victims, tmp_path, tiny_teacher, same, asynchronous):
    moment, code = 1, -signal.SIGKILL
    while code == -signal.SIGKILL and moment < 150:
        folder = tmp_path / f"run{moment}"
        code = killed_in_save(victims, folder, tiny_teacher, moment, asynchronous=asynchronous)
        same(folder)
        moment += 1
    assert moment > 50


def test_r1_nothing_is_validated_twice_or_left_out(victims, tmp_path, tiny_teacher, same):
    """Killed between a save and the next step: validation belongs to the step before."""
    job = {"variant": "kl", "teacher": tiny_teacher, "asynchronous": False}
    assert victims.run(tmp_path / "run", kill_at=8, **job) == -signal.SIGKILL
    finish(victims, tmp_path / "run", **job)
    assert (tmp_path / "run/validations.txt").read_text().split() == ["4", "8", "12"]
    assert set(trace(tmp_path / "run")) == set(range(1, STEPS + 1))


@pytest.mark.slow
def test_soak(tmp_path):
    from tests.faults.soak import soak

    assert soak(tmp_path, kills=20, steps=200, variant="dropout")["kills"] == 20
