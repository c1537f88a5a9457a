"""The methods that make their own words run from their files with the demo pair."""

from __future__ import annotations

import csv

import pytest
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
METHODS = sorted(
    path.stem
    for path in (CONFIGS / "method").glob("*.yaml")
    if "rollout" in (yaml.safe_load(path.read_text()).get("model") or {})
)
QUICK = ("gkd", "minillm")


def fit(tmp_path, *args: str) -> list[dict[str, str]]:
    """Two steps; what was logged, line by line."""
    found = main(
        [
            "fit", "-c", str(CONFIGS / "experiment/demo.yaml"), *args,
            "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0",
            "--trainer.callbacks=null", f"--trainer.logger={CONFIGS / 'logger/csv.yaml'}",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            "--trainer.num_sanity_val_steps=0", "--trainer.val_check_interval=null",
            "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={tmp_path / 'run'}",
            "--data.batch_size=3", "--data.num_workers=0", "--data.train_rows=12",
            "--data.validation_rows=5",
        ]
    )  # fmt: skip
    assert found == 0
    path = next((tmp_path / "run").rglob("metrics.csv"))
    return list(csv.DictReader(path.open()))


def test_all_of_them_are_here():
    assert {"gkd", "imitkd", "minillm", "distillm", "distillm2", "opd", "speculative_kd",
            "seqkd_online", "on_policy_reverse_kl"} <= set(METHODS)  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in METHODS],
)
def test_it_takes_two_steps_and_says_what_was_said(method, tmp_path):
    rows = fit(tmp_path, "-c", str(CONFIGS / "method" / f"{method}.yaml"))
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/loss"]) == float(row["train/loss"])
        assert 0 <= float(row["train/rollout/truncated"]) <= 1
        assert float(row["train/rollout/length"]) > 0


@pytest.mark.slow
def test_group_answers_are_judged_by_the_skills_grader(tmp_path):
    rows = fit(
        tmp_path,
        f"--model.loss={CONFIGS / 'loss/grpo.yaml'}",
        f"--model.rollout={CONFIGS / 'rollout/group.yaml'}",
        f"--model.reward={CONFIGS / 'reward/grade.yaml'}",
    )
    for row in rows:
        assert 0 <= float(row["train/reward"]) <= 1
        assert float(row["train/reward/dropped_groups"]) == 0
        assert float(row["train/rollout/shared_tokens"]) > 0.1
