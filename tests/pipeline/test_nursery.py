"""Stages as copies of one process: exit codes, output, signals; the next is as the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kd_lightning.cli import main
from kd_lightning.pipeline.nursery import Nursery
from tests.conftest import ROOT
from tests.knowledge.test_command import config


@pytest.fixture(scope="module")
def nursery():
    """One for all tests: it takes seconds to import everything."""
    made = Nursery()
    yield made
    process = made._process
    made.close()
    assert process.returncode == 0
    made.close()


def test_stages_end_with_their_own_codes_and_the_next_goes_on(nursery, tmp_path, capfd):
    path = config(tmp_path)
    assert nursery.run(["elicit", "-c", path]) == 0
    assert nursery.run(["elicit", "-c", "nowhere.yaml"]) == 2
    assert nursery.run(["elicit", "-c", path]) == 0
    told = capfd.readouterr()
    assert "01-answer: 8 in, 8 out" in told.out and "01-answer: done before" in told.out
    assert told.err.count("error: ") == 1
    assert nursery._process is not None and nursery._process.poll() is None
    # as the command line of its own would have written it
    assert main(["elicit", "-c", path, f"--output={tmp_path / 'other'}"]) == 0
    one, other = (list((tmp_path / n / "shards").iterdir()) for n in ("set", "other"))
    assert [p.name for p in one] == [p.name for p in other]


def test_a_stage_that_is_killed_has_the_signals_code(nursery, tmp_path):
    slow = config(tmp_path)
    assert nursery.run(["elicit", "-c", "nowhere.yaml"]) == 2  # it is there
    parent = nursery._process.pid
    killer = (
        "import os, subprocess, sys, time\n"
        "while True:\n"
        f"    found = subprocess.run(['pgrep', '-P', '{parent}'], capture_output=True, text=True)\n"
        "    if found.stdout.strip():\n"
        "        os.kill(int(found.stdout.split()[0]), 9)\n"
        "        break\n"
        "    time.sleep(0.001)\n"
    )
    helper = subprocess.Popen([sys.executable, "-c", killer])
    assert nursery.run(["elicit", "-c", slow]) == -signal.SIGKILL
    helper.wait(30)
    assert nursery.run(["elicit", "-c", slow]) == 0


def test_with_arguments_it_is_the_command_line():
    """So other ranks of a stage are started by Lightning: with the module's name and arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "kd_lightning.pipeline.nursery", "--version"],
        capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("kd_lightning ")
