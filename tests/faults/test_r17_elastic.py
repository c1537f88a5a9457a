"""R17: the same global batch on another number of processes."""

from __future__ import annotations

import signal

import pytest

from tests.faults import ranks
from tests.faults.parts import trace


def together(folder) -> dict[int, set[str]]:
    """Step to the rows of both ranks."""
    one, two = trace(folder / "rank-0"), trace(folder / "rank-1")
    return {step: {*one[step]["ids"], *two[step]["ids"]} - {""} for step in one}


@pytest.mark.slow
def test_r17_two_processes_then_one_then_two(victims, tmp_path, tiny_teacher):
    """The same global batch: the same rows in each step, losses to 1e-6."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    whole.mkdir(), split.mkdir()
    assert ranks.launch(whole, tiny_teacher, steps=9)[0] == [0, 0]
    stop = {"signal": int(signal.SIGTERM), "steps": 9}  # the schedule needs the same length
    assert ranks.launch(split, tiny_teacher, signal_at=2, **stop)[0] == [143, 143]
    job = {"variant": "kl", "teacher": tiny_teacher, "rows": 42, "batch": 6, "validate": 0}
    wrong = victims.run(split, **stop, **{**job, "batch": 3})
    said = (split / "said.txt").read_text()
    assert wrong == 1 and "of all processes in one step: 6 then, 3" in said
    assert victims.run(split, signal_at=5, **stop, **job) == 143
    assert ranks.launch(split, tiny_teacher, steps=9)[0] == [0, 0]
    expected = together(whole)
    alone = trace(split)
    for step, done in alone.items():
        assert set(done["ids"]) == expected[step], step
    again = together(split)
    assert set(again) == {1, 2, 3, 7, 8, 9} and set(alone) == {4, 5, 6}
    assert again == {s: expected[s] for s in again}
    losses = trace(whole / "rank-0")
    for step, done in {**alone, **trace(split / "rank-0")}.items():
        told, wanted = float.fromhex(done["loss"]), float.fromhex(losses[step]["loss"])
        assert told == pytest.approx(wanted, abs=1e-6), step


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_r17_a_new_student_is_that_of_the_first_process(victims, tmp_path, tiny_teacher, strategy):
    """Processes whose random numbers differ: no student out of parts of two draws."""
    apart, alone = tmp_path / "apart", tmp_path / "alone"
    job = {"teacher": tiny_teacher, "steps": 1}
    assert victims.pair(apart, strategy=strategy, seeds=[5, 6], **job) == [0, 0]
    assert victims.run(alone, variant="kl", rows=42, batch=6, validate=0, **job) == 0
    (told,) = trace(alone).values()
    for rank in (0, 1):
        (same,) = trace(apart / f"rank-{rank}").values()
        assert float.fromhex(same["loss"]) == pytest.approx(float.fromhex(told["loss"]), abs=1e-6)
