"""An elicitation that is killed anywhere and started again makes what an undisturbed one makes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from kd_lightning.knowledge.engine import Elicitation, Seeds
from tests.knowledge.kit import Answers, Counting, Odd, seeds
from tests.knowledge.test_engine import asked, card, rows

RECORDS = 60


def run(folder: Path, log: Path) -> None:
    """Three steps of which two ask, each reply a moment later than the one before."""
    Elicitation(
        str(folder / "set"),
        [Answers(), Answers("revision"), Odd()],
        {"teacher": Counting(log=str(log), seconds=0.004)},
        Seeds(str(folder / "seeds.jsonl")),
        said=lambda line: None,
        shard_rows=7,
    ).run()


def killed(folder: Path, log: Path, after: float) -> bool:
    """Run it in a fork and kill that after some seconds; whether it was still running."""
    child = os.fork()
    if not child:
        try:
            run(folder, log)
        finally:
            os._exit(0)
    until = time.monotonic() + after
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def test_killed_at_twenty_moments(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    seeds(whole / "seeds.jsonl", RECORDS)
    begun = time.monotonic()
    run(whole, tmp_path / "undisturbed")
    took = time.monotonic() - begun
    expected = {k: v for k, v in card(whole).items() if k not in ("run", "seeds")}
    draw, hit = random.Random(7), 0
    for number in range(20):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        seeds(folder / "seeds.jsonl", RECORDS)
        log = tmp_path / f"asked-{number}"
        hit += killed(folder, log, draw.uniform(0, took))
        kept = sum(
            journal.read_bytes().count(b"\n")
            for journal in (folder / "set").glob("steps/*/journal.jsonl")
        )
        before = len(asked(log))
        assert kept <= before <= kept + 3  # only what was under way is lost
        run(folder, log)
        assert len(asked(log)) == 2 * RECORDS + before - kept, "asked twice"
        told = card(folder)
        assert [r["id"] for r in rows(folder)] == [r["id"] for r in rows(whole)]
        for name in ("records", "spend"):
            assert told[name] == expected[name]
        place = str(folder), str(whole)
        texts = [str(r).replace(place[0], place[1]) for r in rows(folder)]
        assert texts == [str(r) for r in rows(whole)]
    assert hit >= 10


@pytest.mark.parametrize("moment", range(1, 12))
def test_killed_before_each_thing_that_is_written(tmp_path, moment):
    seeds(tmp_path / "seeds.jsonl", 9)
    log = tmp_path / "asked"
    child = os.fork()
    if not child:
        count = 0
        replace = Path.replace

        def counted(self, target):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = counted
        try:
            run(tmp_path, log)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run(tmp_path, log)
    assert len(asked(log)) == 18 and len(rows(tmp_path)) == 5
    assert not [p for p in (tmp_path / "set").rglob("*") if p.name.endswith(".partial")]
