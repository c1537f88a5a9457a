"""R1, R2 for two processes: killed again and again, resumed, the same run on both ranks."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter

import pytest

from kd_lightning.reliability import commit
from tests.faults.parts import trace
from tests.faults.ranks import EPOCH, ROWS

RANKS = (0, 1)


def end(folder, rank):
    return json.loads((folder / f"end-{rank}.json").read_text())


def said(folder):
    return "\n".join((folder / f"said-{r}.txt").read_text()[-2500:] for r in RANKS)


def finish(victims, folder, **job):
    assert victims.pair(folder, **job) == [0, 0], said(folder)


def killed(victims, folder, rank=None, **job):
    """Both ranks are killed, or one, whose peer must then end by itself."""
    codes = victims.pair(folder, **job, **({} if rank is None else {"rank": rank}))
    assert codes[rank or 0] == -signal.SIGKILL, (codes, said(folder))
    assert 0 not in codes and -signal.SIGALRM not in codes, (codes, said(folder))
    for found in commit.committed(folder / "checkpoints"):
        assert commit.problem(found.path) is None


def assert_same(cut, whole, steps):
    """Rows, losses and weights of each rank; in an epoch every row once."""
    found = [trace(cut / f"rank-{r}") for r in RANKS]
    for rank in RANKS:
        assert found[rank] == trace(whole / f"rank-{rank}"), "other rows or losses"
        assert end(cut, rank) == end(whole, rank), "other weights"
        assert set(found[rank]) == set(range(1, steps + 1))
    for first in range(1, steps - EPOCH + 2, EPOCH):
        told = [found[r][step]["ids"] for r in RANKS for step in range(first, first + EPOCH)]
        assert len({name for ids in told for name in ids}) == ROWS == sum(map(len, told))
    assert len({told["loss"] for told in found[0].values()}) == steps  # something is learned


def test_r1_two_processes_killed_twice(victims, tmp_path, tiny_teacher):
    job = {"variant": "dropout", "teacher": tiny_teacher, "strategy": "fsdp", "steps": 8}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    killed(victims, cut, kill_at=3, **job)
    assert commit.newest(cut / "checkpoints").step == 2
    killed(victims, cut, rank=1, kill_at=5, **job)
    finish(victims, cut, **job)
    finish(victims, whole, **job)
    assert_same(cut, whole, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sft", "kl", "dropout", "accumulate", "gkd", "rlaif"])
def test_r1_twenty_kills_of_two_processes(victims, tmp_path, tiny_teacher, variant):
    """One run of 40 steps, killed up to 60 ms after a step has begun."""
    draw = random.Random(variant)
    job = {"variant": variant, "teacher": tiny_teacher, "strategy": "fsdp", "steps": 40}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    begun, counted = time.monotonic(), Counter()
    for number, step in enumerate(sorted(draw.sample(range(35), 20))):
        rank = None if number % 3 else number // 3 % 2
        killed(victims, cut, rank, kill_at=step, kill_delay=draw.uniform(0.001, 0.06), **job)
        counted["one rank" if rank is not None else "both ranks"] += 1
    finish(victims, cut, **job)
    finish(victims, whole, **job)
    assert_same(cut, whole, steps=40)
    done = len((cut / "rank-0/trace.jsonl").read_text().splitlines())
    assert counted["one rank"] + counted["both ranks"] == 20 and done > 40  # some steps twice
    print(f"{variant}: {dict(counted)}, {done} steps, {time.monotonic() - begun:.0f} s")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, None])
def test_r2_two_processes_killed_in_a_save(victims, tmp_path, tiny_teacher, rank):
    """At the first thing that a save does, the second, ...: one run, killed at each."""
    job = {"variant": "kl", "teacher": tiny_teacher, "strategy": "fsdp", "steps": 40}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    unfinished = 0
    for moment in (1, 2, 3) * 4 if rank == 1 else range(1, 15):  # it does one thing in a save
        killed(victims, cut, rank, kill_in_save=moment, **job)
        unfinished += any((cut / "checkpoints").glob(f"{commit.UNFINISHED}*"))
    finish(victims, cut, **job)
    finish(victims, whole, **job)
    assert_same(cut, whole, steps=40)
    left = [path for path in (cut / "checkpoints").iterdir() if not path.is_symlink()]
    assert len(left) == 2 and all(commit.problem(path) is None for path in left), left
    if rank == 1:  # the first process lives, and takes away what was begun
        assert unfinished == 0
    else:
        assert unfinished > 4
    print(f"rank {rank}: {unfinished} kills left a save unfinished")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp_file"])
def test_r1_other_strategies_of_two_processes(victims, tmp_path, tiny_teacher, strategy):
    job = {"teacher": tiny_teacher, "strategy": strategy, "steps": 10}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for step, rank in ((2, 0), (4, 1), (7, None)):
        killed(victims, cut, rank, kill_at=step, **job)
    finish(victims, cut, **job)
    finish(victims, whole, **job)
    assert_same(cut, whole, steps=10)
