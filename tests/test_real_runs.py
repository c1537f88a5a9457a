"""The first skills on real files: train, validate and test with a real teacher."""

from __future__ import annotations

import csv

import pytest
import torch

from kd_lightning.cli import main
from tests.conftest import ROOT

QUICK = [
    "--trainer.logger=kd_lightning.loggers.MetricsFile", "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=12", "--trainer.val_check_interval=6", "--trainer.log_every_n_steps=6",
    "--data.limit_train=120", "--data.limit_validation=10", "--data.limit_test=10",
    "--data.batch_size=4",
    "--model.answers.max_new_tokens=12", "--model.graded_rows=6",
]  # fmt: skip
HEADLINE = {
    "tiny_instruction_following": "rouge_l",
    "tiny_thinking": "exact_match",
    "tiny_medicine": "token_f1",
}


def last(folder, name: str) -> float:
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [float(row[name]) for row in rows if row.get(name)][-1]


@pytest.mark.parametrize("name", HEADLINE)
def test_real_files_real_teacher_new_student(name, shared, monkeypatch, tmp_path):
    monkeypatch.setenv("KD_SHARED", str(shared))
    run = tmp_path / "run"
    told = ["-c", str(ROOT / f"configs/experiment/{name}.yaml"), *QUICK]
    assert main(["fit", *told, "--trainer.callbacks=callbacks.RunCheckpoint",
                 f"--trainer.default_root_dir={run}"]) == 0  # fmt: skip
    assert last(run, "val/kl") < 0.9 * 3.9  # an untrained student stands at 3.9 nats
    assert 0 <= last(run, f"val/{HEADLINE[name]}") <= 1
    again = ["-c", str(run / "config.yaml"), f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    for command in ("validate", "test"):
        place = tmp_path / command
        assert main([command, *again, f"--trainer.default_root_dir={place}"]) == 0
    # the file has no test rows of its own: the held-back rows serve, all of them graded
    assert last(tmp_path / "test", "test/kl") == pytest.approx(last(run, "val/kl"), rel=1e-4)
    assert last(tmp_path / "validate", "val/kl") == pytest.approx(last(run, "val/kl"), rel=1e-4)
    assert f"test/{HEADLINE[name]}" in (tmp_path / "test/metrics.csv").read_text()


def test_the_teacher_itself_can_be_the_student(shared, monkeypatch, tmp_path):
    """Already at its teacher: the loss is 0 and stays there."""
    monkeypatch.setenv("KD_SHARED", str(shared))
    told = ["-c", str(ROOT / "configs/experiment/tiny_stories.yaml"), *QUICK[:3]]
    told += [f"--model.student.path={shared}/models/stories260k", "--model.student.config=null"]
    told += ["--trainer.callbacks=null", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1"]
    told += [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.limit_val_batches=0"]
    assert main(["fit", *told]) == 0
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert float(rows[0]["train/kl"]) == pytest.approx(0, abs=1e-6)
    assert float(rows[0]["train/agreement"]) == 1.0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision, shared, monkeypatch, tmp_path):
    monkeypatch.setenv("KD_SHARED", str(shared))
    told = ["-c", str(ROOT / "configs/experiment/tiny_thinking.yaml"), *QUICK]
    told += [
        f"--trainer.precision={precision}",
        "--trainer.callbacks=null",
        "--model.loss=ForwardKL",
    ]
    told += ["--model.optimizer.lr=1e-5"]
    told += ["--model.student.lora.rank=4", f"--model.student.path={shared}/models/stories260k",
             "--model.student.config=null", "--trainer.limit_val_batches=2"]  # fmt: skip
    run = tmp_path / "run"
    assert main(["fit", *told, f"--trainer.default_root_dir={run}"]) == 0
    assert last(run, "val/kl") < 0.05  # the student started as the teacher, in half precision


def test_a_resumed_run_equals_the_undisturbed_one(shared, monkeypatch, tmp_path):
    """TAID, whose schedule has a state, with warm-up, resumed inside an epoch."""
    monkeypatch.setenv("KD_SHARED", str(shared))
    told = ["-c", str(ROOT / "configs/experiment/tiny_thinking.yaml"), *QUICK, "--model.loss=TAID"]
    told += ["--trainer.callbacks=callbacks.RunCheckpoint", "--trainer.log_every_n_steps=1"]
    told += ["--trainer.callbacks.keep_last=20", "--trainer.callbacks.monitor=val/loss"]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    assert main(["fit", *told, f"--trainer.default_root_dir={whole}"]) == 0
    half = next(p for p in (whole / "checkpoints").glob("*.ckpt") if at(p)["global_step"] == 6)
    resumed = [f"--trainer.default_root_dir={rest}", f"--ckpt_path={half}"]
    assert main(["fit", *told, *resumed]) == 0
    one, two = at(whole / "checkpoints/last.ckpt"), at(rest / "checkpoints/last.ckpt")
    assert one["global_step"] == two["global_step"] == 12
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    first, second = (rows_of(f)[-6:] for f in (whole, rest))
    assert [r["train/loss"] for r in first] == [r["train/loss"] for r in second]


def at(path):
    return torch.load(path, weights_only=True)


def rows_of(folder):
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [row for row in rows if row.get("train/loss")]
