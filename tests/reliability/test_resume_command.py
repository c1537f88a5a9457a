"""R18 and --resume: what a user types to go on, what is refused, what the logs hold."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import yaml

from kd_lightning.cli import main
from kd_lightning.errors import KDError
from kd_lightning.loggers import TensorBoardRun, WandbRun, go_on, keep_until
from kd_lightning.reliability import commit, lock, resume
from kd_lightning.reliability.lock import RunLock
from tests.conftest import ROOT
from tests.test_cli import experiment, rows, said

_ = (experiment, rows)  # fixtures

LONGER = "--trainer.max_steps=4"
AGAIN = "--resume=auto"


def saved(folder):
    return [c.step for c in commit.committed(folder / "checkpoints")]


def weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def curve(folder):
    with (folder / "metrics.csv").open() as file:
        return [(r["step"], r.get("train/loss"), r.get("val/loss")) for r in csv.DictReader(file)]


def test_resume_goes_on_as_if_nothing_had_been(capsys, caplog, experiment, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    fixed = ["--model.scheduler=null"]
    assert main(["fit", "-c", str(experiment), *fixed]) == 0
    before = curve(run)
    code, _, err = said(capsys, "fit", "-c", str(experiment), *fixed, AGAIN, LONGER)
    assert code == 0, err
    assert "trainer.max_steps: 2 -> 4" in caplog.text
    folder = f"--trainer.default_root_dir={whole}"
    assert main(["fit", "-c", str(experiment), *fixed, LONGER, folder]) == 0
    assert [s for s, loss, _ in curve(run) if loss] == ["1", "2", "3", "4"]
    assert curve(run)[: len(before)] == before
    assert [r for r in curve(run) if r[1]] == [r for r in curve(whole) if r[1]]
    one, two = weights(run), weights(whole)
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    assert yaml.safe_load((run / "config.1.yaml").read_text())["trainer"]["max_steps"] == 2
    assert not (run / "run.lock").exists()


def test_auto_begins_where_there_is_nothing(capsys, experiment, tmp_path):
    assert main(["fit", "-c", str(experiment), AGAIN]) == 0
    assert saved(tmp_path / "run")[-1] == 2
    code, _, err = said(capsys, "fit", "-c", str(experiment))
    assert code == 2 and "--resume=auto" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed_everything=4"], ["seed_everything was 3", "is 4"]),
        (["--model.loss=ReverseKL"], ["model.loss.class_path", "ReverseKL"]),
        (["--model.loss.temperature=2"], ["temperature was 1.0"]),
        (["--model.student.config.hidden_size=32"], ["hidden_size was 16"]),
        (["--model.optimizer.lr=0.1"], ["lr was 0.001"]),
        (["--data.seed=1"], ["data.init_args.seed was 0"]),
        (["--data.max_length=512"], ["max_length was 1024"]),
        (["--trainer.precision=bf16-mixed"], ["trainer.precision"]),
        (["--data.batch_size=3"], ["rows (or tokens) of all processes in one step: 2 then, 3"]),
    ],
)
def test_r18_another_configuration_is_refused_by_its_key(
    capsys, experiment, tmp_path, change, words
):
    run = tmp_path / "run"
    if not run.exists():
        assert main(["fit", "-c", str(experiment)]) == 0
    code, _, err = said(capsys, "fit", "-c", str(experiment), AGAIN, LONGER, *change)
    assert code == 2 and "--resume=force" in err
    for word in words:
        assert word in err, err
    assert saved(run)[-1] == 2


def test_r18_other_rows_under_the_same_name_are_refused_and_forced(
    capsys, experiment, rows, tmp_path
):
    assert main(["fit", "-c", str(experiment)]) == 0
    rows.write_text(rows.read_text().replace("red it is", "red it was"))
    code, _, err = said(capsys, "fit", "-c", str(experiment), AGAIN, LONGER)
    assert code == 2 and "other training data (the content of the training rows" in err
    assert main(["fit", "-c", str(experiment), "--resume=force", LONGER, "--data.seed=9"]) == 0
    assert saved(tmp_path / "run")[-1] == 4


def test_a_path_goes_on_from_there_and_sets_later_ones_aside(capsys, experiment, tmp_path):
    run = tmp_path / "run"
    often = ["--trainer.callbacks=RunCheckpoint", "--trainer.callbacks.every_n_steps=1"]
    often += ["--trainer.callbacks.keep_last=9"]
    assert main(["fit", "-c", str(experiment), *often]) == 0
    assert saved(run) == [1, 2]
    first = run / "checkpoints/step000001.ckpt"
    assert main(["fit", "-c", str(experiment), *often, f"--resume={first}"]) == 0
    assert saved(run) == [1, 2] and (run / "checkpoints/set_aside/step000002.ckpt").is_file()
    assert [s for s, loss, _ in curve(run) if loss] == ["1", "2"]
    branch = [f"--resume={first}", f"--trainer.default_root_dir={tmp_path / 'branch'}"]
    assert main(["fit", "-c", str(experiment), *often, *branch]) == 0
    assert saved(tmp_path / "branch") == [2]
    code, _, err = said(capsys, "fit", "-c", str(experiment), "--resume=nowhere.ckpt")
    assert code == 2 and "there is no checkpoint nowhere.ckpt" in err


def test_a_damaged_checkpoint_is_passed_over_loudly(caplog, experiment, tmp_path):
    run = tmp_path / "run"
    often = ["--trainer.callbacks=RunCheckpoint", "--trainer.callbacks.every_n_steps=1"]
    assert main(["fit", "-c", str(experiment), *often]) == 0
    expected = weights(run)
    path = run / "checkpoints/step000002.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["fit", "-c", str(experiment), *often, AGAIN]) == 0
    assert "step000002.ckpt is damaged and passed over" in caplog.text
    assert commit.problem(path) is None  # made again
    again = weights(run)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_may_change():
    free = [
        "trainer.max_steps", "trainer.devices", "trainer.logger", "model.answers.temperature",
        "model.micro_batch_rows", "data.init_args.num_workers",
    ]  # fmt: skip
    bound = [
        "model.loss.class_path", "data.init_args.path", "model.student.path", "seed_everything",
        "model.teacher.init_args.path", "model.gradient_clip_norm",
    ]  # fmt: skip
    assert not any(resume.is_bound(key) for key in free)
    assert all(resume.is_bound(key) for key in bound)
    changed = resume.changes({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": {}})
    assert changed == {"a.b": (1, 2), "d": (None, {})}


# ---- two runs, one folder ---------------------------------------------------------------------

HOLD = """
import sys, time, pathlib
from kd_lightning.reliability.lock import RunLock
RunLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_r18_two_runs_cannot_share_a_folder(capsys, experiment, tmp_path, caplog):
    run = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        for how in ("never", "auto", "force"):
            code, _, err = said(capsys, "fit", "-c", str(experiment), f"--resume={how}")
            assert code == 2 and f"process {other.pid} on {socket.gethostname()}" in err
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with pytest.warns(UserWarning, match=f"process {other.pid} .* is taken over"):
            held = RunLock(run)
            held.acquire()
        with pytest.raises(KDError, match=f"in use by process {os.getpid()}"):
            RunLock(run).acquire()
        held.release()
        assert not (run / "run.lock").exists()
    finally:
        other.kill()
        other.wait()


def test_a_lock_of_another_machine_counts_while_it_shows_signs_of_life(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "today"}))
    with pytest.raises(KDError, match="process 1 on elsewhere"):
        RunLock(tmp_path).acquire()
    old = time.time() - lock.DEAD - 1
    os.utime(path, (old, old))
    held = RunLock(tmp_path)
    with pytest.warns(UserWarning, match="process 1 on elsewhere has ended"):
        held.acquire()
    held.release()


# ---- logs -------------------------------------------------------------------------------------


def test_metrics_beyond_the_checkpoint_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,a,b\r\n1,0.5,\r\n2,,1\r\n3,0.25,\r\n4,0.1")  # cut by the kill
    (tmp_path / "answers.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step"')
    keep_until(path, 2)
    assert path.read_bytes() == b"step,a,b\r\n1,0.5,\r\n2,,1\r\n"
    go_on([], tmp_path, 2)
    assert (tmp_path / "answers.jsonl").read_text() == '{"step": 2}\n'


def test_dashboards_go_on_without_doubling(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def start(step):
        board = TensorBoardRun(str(tmp_path))
        if step:
            go_on([board], tmp_path, step)
        for s in range(step + 1, step + 4):
            board.log_metrics({"a": s}, s)
        board.finalize("success")

    start(0)
    start(2)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("a")] == [1, 2, 3, 4, 5]

    (tmp_path / "metrics.csv").write_text("step,a\n1,1\n2,1\n3,1\n")
    (tmp_path / "wandb/offline-run-20260101_000000-former01").mkdir(parents=True)
    (tmp_path / "wandb/run-20260202_000000-later002").mkdir(parents=True)
    logger = WandbRun(save_dir=str(tmp_path))
    go_on([logger], tmp_path, 2)
    assert logger._run["id"] == "later002" and logger.known_until == 3
