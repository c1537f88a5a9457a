"""The quickstart: both arms alike but for the loss, one table, and the margin that it promises."""

import json
from pathlib import Path

import pytest
import yaml

from kd_lightning.quickstart import ARMS, commands, compare, fresh, main, quickstart

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
SEEDS = (1, 2, 3)


def read(name):
    return yaml.safe_load((CONFIGS / "experiment" / name).read_text())


def test_the_arms_differ_in_the_loss_and_the_folder_only():
    distilled, labels = read("demo.yaml"), read("demo_labels.yaml")
    assert (distilled["model"].pop("loss"), labels["model"].pop("loss")) == (
        "../loss/forward_kl.yaml",
        "CrossEntropy",
    )
    folders = [arm["trainer"].pop("default_root_dir") for arm in (distilled, labels)]
    assert folders == ["runs/demo", "runs/demo_labels"]
    assert distilled == labels


def test_a_seed_changes_student_and_rows_of_both_arms():
    made = commands(Path("runs/x"), CONFIGS, seed=7)
    assert [line[0] for line in made] == ["fit", "fit"]
    for arm, line in zip(ARMS, made, strict=True):
        assert f"--trainer.default_root_dir=runs/x/{arm}" in line
        assert {"--seed_everything=7", "--data.row_seed=7", "--data.seed=7"} <= set(line)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    assert fresh(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "new").mkdir()
    (tmp_path / "new-2").mkdir()
    assert fresh(tmp_path / "new") == tmp_path / "new-3"


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "run the quickstart in a checkout" in capsys.readouterr().err


def test_two_steps_of_it_end_with_table_plots_and_student(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.test_rows=10"]
    matched = quickstart(tmp_path / "run", CONFIGS, overrides=[*short, "--data.train_rows=64"])
    assert list(matched) == ["teacher", "student before", "labels alone", "distilled"]
    table = json.loads((tmp_path / "run" / "comparison" / "comparison.json").read_text())
    assert "exact_match" in json.dumps(table)
    assert list((tmp_path / "run" / "comparison" / "plots").glob("*.png"))
    for arm in ARMS:
        assert (tmp_path / "run" / arm / "student" / "model.safetensors").is_file()
        assert list((tmp_path / "run" / arm / "plots").glob("*.png"))
    assert compare(tmp_path / "run") == matched


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_distilled_beats_labels_alone_for_every_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [quickstart(tmp_path / str(seed), CONFIGS, seed=seed) for seed in SEEDS]
    labels = [arms["labels alone"] for arms in found]
    distilled = [arms["distilled"] for arms in found]
    assert min(distilled) > max(labels)
    assert all(d - one >= 0.10 for d, one in zip(distilled, labels, strict=True))
    assert all(arms["student before"] < 0.05 for arms in found)
    assert all(arms["teacher"] >= 0.95 for arms in found)
