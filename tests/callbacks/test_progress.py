from __future__ import annotations

import logging
import re

import pytest

import callbacks as ours
from tests.evaluation.pair import distiller, instructions, trainer


def test_a_log_gets_lines_and_no_bar(tmp_path, tiny_teacher, caplog, capsys):
    bar = ours.DistillationProgress(log_every_seconds=0.0)
    made = trainer(tmp_path, callbacks=[bar], max_steps=4, enable_progress_bar=True)
    with caplog.at_level(logging.INFO):
        made.fit(distiller(tiny_teacher, tiny_teacher), instructions(tmp_path))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step ")]
    assert any(
        re.match(r"step 4/4, loss \d+\.\d{3}, val KL \d+\.\d{3}.*left 0:00:00", x) for x in lines
    )
    assert "━━" not in capsys.readouterr().out.replace("┏━", "")[-200:]


def test_a_terminal_gets_a_bar(tmp_path, tiny_teacher, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    bar = ours.DistillationProgress()
    made = trainer(tmp_path, callbacks=[bar], max_steps=4, enable_progress_bar=True)
    made.fit(distiller(tiny_teacher, tiny_teacher), instructions(tmp_path))
    assert bar.is_enabled
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "Epoch" in shown and "left: 0:00:0" in shown and "loss:" in shown


def test_the_time_left_is_that_of_the_whole_run(monkeypatch):
    from types import SimpleNamespace

    clock = {"now": 100.0}
    monkeypatch.setattr("callbacks.progress.time.monotonic", lambda: clock["now"])
    bar = ours.DistillationProgress()
    bar._began, bar._first_step = 100.0, 10  # continued at step 10
    run = SimpleNamespace(global_step=20, estimated_stepping_batches=50, callback_metrics={})
    clock["now"] = 130.0
    assert bar.get_metrics(run, None)["left"] == "0:01:30"
    run.estimated_stepping_batches = float("inf")
    assert "left" not in bar.get_metrics(run, None)


def test_a_meter_counts_tokens_and_leaves_pauses_out(monkeypatch):
    import torch

    from callbacks.throughput import Meter

    clock = {"now": 0.0}
    monkeypatch.setattr("callbacks.throughput.time.monotonic", lambda: clock["now"])
    from types import SimpleNamespace

    batch = SimpleNamespace(attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]))
    meter = Meter()
    clock["now"] = 2.0
    meter.add(batch)
    meter.pause()
    clock["now"] = 50.0  # validation
    meter.resume()
    clock["now"] = 53.0
    meter.add(batch)
    assert meter.read() == (10, 2, pytest.approx(5.0))
    clock["now"] = 54.0
    meter.add(batch)
    assert meter.read() == (5, 1, pytest.approx(1.0))


def test_the_description_that_is_overridden_still_exists():
    from lightning.pytorch.callbacks import RichProgressBar

    assert callable(RichProgressBar._get_train_description)
