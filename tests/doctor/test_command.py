"""`kd doctor` as it is typed."""

from __future__ import annotations

import json

import pytest
import yaml

from kd_lightning.cli import main
from tests.doctor.kit import ROWS
from tests.tiny import config


@pytest.fixture
def experiment(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    told = {
        "trainer": {
            "accelerator": "gpu",  # not here: it is tried on the processor
            "devices": 4,
            "max_steps": 20,
            "logger": False,
            "default_root_dir": str(tmp_path / "run"),
        },
        "model": {
            "student": {"config": config(), "tokenizer": "demo"},
            "teacher": {"class_path": "LocalTeacher", "init_args": {"path": "demo"}},
            "loss": "ForwardKL",
        },
        "data": {
            "class_path": "InstructionFollowing",
            "init_args": {"path": str(rows), "validation_share": 0.25, "batch_size": 2},
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def test_good_and_bad_by_exit_code(experiment, tmp_path, capsys):
    args = ["doctor", "-c", str(experiment)]
    assert main([*args, "--memory=8GiB", "--gpus=2"]) == 0
    out = capsys.readouterr().out
    assert "This run will work" in out and "on each of 2 GPUs" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["experiment.yaml", "rows.jsonl"]
    with pytest.raises(SystemExit) as stop:
        main([*args, "--data.path=nowhere.jsonl"])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "nowhere.jsonl does not exist" in out and "would fail" in out
    assert main([*args, "--memory=much"]) == 2
    assert "write a size such as" in capsys.readouterr().err
