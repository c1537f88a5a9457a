"""R7, R8, R15: signals, an exception on one rank, no memory: saved or named, ended everywhere."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch

from kd_lightning.reliability import commit
from kd_lightning.reliability.memory import is_out_of_memory
from tests.faults import ranks
from tests.faults.parts import trace
from tests.faults.test_r1_two_processes import assert_same, finish, said

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


@pytest.mark.parametrize(("number", "step"), zip(CODES, (0, 3, 6), strict=True))
def test_r7_a_signal_saves_this_step_and_stops(victims, tmp_path, tiny_teacher, same, number, step):
    job = {"variant": "kl", "teacher": tiny_teacher, "every": 100}
    folder = tmp_path / "run"
    code = victims.run(folder, signal=int(number), signal_at=step, **job)
    assert code == CODES[number], (folder / "said.txt").read_text()[-2000:]
    assert commit.newest(folder / "checkpoints").step == step + 1  # the step was finished
    assert "--resume=auto" in (folder / "said.txt").read_text()
    assert victims.run(folder, **job) == 0
    same(folder)


def test_r7_a_signal_during_a_validation(victims, tmp_path, tiny_teacher, same):
    job = {"variant": "kl", "teacher": tiny_teacher, "every": 100}
    signalled = {"signal": int(signal.SIGTERM), "signal_in_validation": 4}
    assert victims.run(tmp_path / "run", **signalled, **job) == 143
    assert commit.newest(tmp_path / "run/checkpoints").step == 4
    assert victims.run(tmp_path / "run", **job) == 0
    same(tmp_path / "run")


def test_r7_workers_outlive_the_signal(victims, tmp_path, tiny_teacher, same):
    job = {"variant": "kl", "teacher": tiny_teacher, "workers": 1}
    assert victims.run(tmp_path / "run", signal=int(signal.SIGTERM), signal_at=4, **job) == 143
    assert victims.run(tmp_path / "run", **job) == 0
    same(tmp_path / "run")


def test_max_time_leaves_a_checkpoint(victims, tmp_path, tiny_teacher, same):
    """Inside an epoch: the clock stops the run, and it goes on as if nothing had been."""
    job = {"variant": "kl", "teacher": tiny_teacher, "every": 100}
    folder = tmp_path / "run"
    code = victims.run(folder, max_time="00:00:00:01", slow=0.4, **job)
    assert code == 0, (folder / "said.txt").read_text()[-2000:]
    reached = commit.newest(folder / "checkpoints").step
    assert 0 < reached < 12 and reached == max(trace(folder))
    assert victims.run(folder, **job) == 0
    same(folder)


def test_epochs_are_counted_right_after_an_early_stop(victims, tmp_path, tiny_teacher, same):
    """A run of two epochs that was stopped within the first still does two."""
    job = {"variant": "kl", "teacher": tiny_teacher, "steps": -1, "epochs": 2}
    folder = tmp_path / "run"
    assert victims.run(folder, max_time="00:00:00:01", slow=0.4, **job) == 0
    assert victims.run(folder, **job) == 0
    assert max(trace(folder)) == 14
    same(folder, steps=-1, epochs=2)


def test_r15_out_of_memory_says_what_and_three_knobs(victims, tmp_path, tiny_teacher):
    folder = tmp_path / "run"
    code = victims.run(folder, variant="kl", teacher=tiny_teacher, memory_at=4)
    said = (folder / "said.txt").read_text()
    assert code == 1 and "out of memory: batch of shape 3 x " in said and " tokens, " in said
    for knob in ("model.micro_batch_rows", "data.max_length", "gradient_checkpointing", "MiB"):
        assert knob in said.split("out of memory: batch")[1]
    assert commit.newest(folder / "checkpoints").step == 4  # the last good one


def test_r15_which_errors_are_out_of_memory():
    told = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    assert is_out_of_memory(RuntimeError(told)) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("rank", [0, 1])
def test_r7_a_signal_to_one_rank_stops_both(tmp_path, tiny_teacher, number, rank):
    job = {"signal": int(number), "signal_at": 2, "rank": rank}
    codes, said = ranks.launch(tmp_path, tiny_teacher, **job)
    assert codes == [CODES[number]] * 2, said
    assert commit.newest(tmp_path / "checkpoints").step == 3
    assert ranks.launch(tmp_path, tiny_teacher)[0] == [0, 0]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert ranks.launch(whole, tiny_teacher)[0] == [0, 0]
    for r in (0, 1):
        assert trace(tmp_path / f"rank-{r}") == trace(whole / f"rank-{r}")
        end = (tmp_path / f"end-{r}.json").read_text()
        assert end == (whole / f"end-{r}.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_r7_twenty_signals_of_two_processes(victims, tmp_path, tiny_teacher, strategy):
    """To rank 0, to rank 1, to both, anywhere in a step: one run, stopped 20 times."""
    draw = random.Random(strategy)
    job = {"teacher": tiny_teacher, "strategy": strategy, "steps": 160, "every": 50}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    longest = 0.0
    for number, step in enumerate(sorted(draw.sample(range(110), 20))):
        told = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number // 3 % 3]
        to = {"rank": number % 3} if number % 3 < 2 else {}
        moment = {"signal_at": step, "signal_delay": draw.uniform(0.001, 0.06)}
        begun = time.monotonic()
        codes = victims.pair(cut, signal=int(told), **to, **moment, **job)
        longest = max(longest, time.monotonic() - begun)
        assert codes == [CODES[told]] * 2, (number, codes, said(cut))
        newest = commit.newest(cut / "checkpoints").step
        assert newest == max(trace(cut / "rank-0")) == max(trace(cut / "rank-1")) > step
    assert longest < 30  # set-up, steps and stop together
    finish(victims, cut, **job)
    finish(victims, whole, **job)
    assert_same(cut, whole, steps=160)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_r8_an_exception_on_one_rank_ends_both(tmp_path, tiny_teacher, rank, strategy):
    codes, said = ranks.launch(tmp_path, tiny_teacher, raise_at=2, rank=rank, strategy=strategy)
    assert all(code not in (0, -99) for code in codes), said
    assert "a fault of this rank" in (tmp_path / f"said-{rank}.txt").read_text()
    for r in (0, 1):
        told = (tmp_path / f"said-{r}.txt").read_text()
        seconds = [float(line.split()[-2]) for line in told.splitlines() if " ended after " in line]
        assert not seconds or max(seconds) < 60
    assert commit.newest(tmp_path / "checkpoints").step == 2
    assert json.loads((tmp_path / f"end-{rank}.json").read_text())["step"] == 2
