"""A key in the environment, runs that end in five ways: it stands in nothing that is written."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kd_lightning.security.secrets import holds_secret, masked, redacted
from tests.conftest import ROOT

CANARY = "sk-canary-0123456789abcdef"


def test_values_become_names(monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", CANARY)
    monkeypatch.setenv("OTHER_TOKEN", CANARY + "-longer")
    monkeypatch.setenv("SHORT_KEY", "on")
    told = redacted(f"call {CANARY}-longer, then {CANARY}, on and on")
    assert told == "call <OTHER_TOKEN>, then <TEACHER_API_KEY>, on and on"


def test_secret_options_are_masked_and_others_are_not(monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", CANARY)
    text = (
        f"a:\n  api_key: abc\n  url: https://u:{CANARY}@h\n  tokenizer: demo\n"
        "  lr: 1e-05\n  token: null\n"
    )
    assert masked(text) == (
        "a:\n  api_key: '***'\n  url: https://u:<TEACHER_API_KEY>@h\n  tokenizer: demo\n"
        "  lr: 1e-05\n  token: null\n"
    )


@pytest.mark.parametrize(
    ("argument", "secret"),
    [("--x.api_key=1", True), (f"--x={CANARY}", True), ("--data.tokenizer=demo", False)],
)
def test_a_command_line_that_tells(argument, secret, monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", CANARY)
    assert holds_secret(["fit", argument]) is secret


QUICK = [
    "-c", "configs/experiment/demo.yaml", "--trainer.max_steps=3", "--trainer.val_check_interval=2",
    "--data.limit_train=64", "--data.limit_validation=8", "--data.batch_size=4",
    "--trainer.logger+=TensorBoardRun",
]  # fmt: skip
KEPT = "--model.teacher.revision=${oc.env:TEACHER_API_KEY}"
"""In the configuration of a run that works: a local folder has no revision."""


def start(folder, *arguments):
    env = {
        **os.environ,
        "TEACHER_API_KEY": CANARY,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "KD_LOGGER": "1",
    }
    command = [sys.executable, "train.py", *arguments, f"--trainer.default_root_dir={folder}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def written(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ENDS = {
    "well": (["fit", *QUICK, KEPT], 0),
    "no such model": (["fit", *QUICK, "--model.teacher.path=/models/${oc.env:TEACHER_API_KEY}"], 2),
    "no such class": (["fit", *QUICK, "--model.loss=${oc.env:TEACHER_API_KEY}"], 2),
    "in a step": (["fit", *QUICK, KEPT, "--model.optimizer.lr=1e30"], None),
    "by a signal": (["fit", *QUICK, KEPT, "--trainer.max_steps=100000"], None),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_key_stands_in_nothing_that_is_written(end, tmp_path):
    arguments, code = ENDS[end]
    folder = tmp_path / "run"
    process = start(folder, *arguments)
    if end == "by a signal":
        until = time.monotonic() + 120
        while not (folder / "metrics.csv").exists() and time.monotonic() < until:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code if code is not None else process.returncode != 0, output
    assert CANARY.encode() not in output
    files = written(folder) if folder.exists() else {}
    assert code == 2 or any(path.name == "config.yaml" for path in files)
    assert [str(path) for path, content in files.items() if CANARY.encode() in content] == []
    if end == "well":
        assert b"<TEACHER_API_KEY>" in files[folder / "config.yaml"]
