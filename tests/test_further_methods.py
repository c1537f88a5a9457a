"""Online feedback, conditions and rewards with a value head: two steps, and whose formula runs."""

from __future__ import annotations

import csv

import pytest
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
PAIRS = {"comparator": "Logistic", "score": "LogRatio", "beta": 0.1}
EXPECTED = {
    "crlft": {"loss": ("RewardWeighted", {"beta": 1.0, "threshold": None})},
    "oaif": {
        "loss": ("Ranking", {**PAIRS, "reference": "teacher"}),
        "rollout": ("FromStudent", {"n": 2}),
        "reward": ("PairJudge", {"swap": True, "by": "choices", "generator": None}),
    },
    "ppo": {
        "loss": (
            "PolicyGradient",
            {"advantage": "GAE", "surrogate": "ClippedRatio", "reward_policy": "drawn"},
        ),
        "rollout": ("Reuse", {"epochs": 4, "minibatches": 1, "inner": "FromStudent"}),
        "reward": ("Grade", {}),
    },
    "quark": {"loss": ("Weighted", {})},
    "rlcd_online": {
        "loss": ("Ranking", {**PAIRS, "reference": "teacher"}),
        "rollout": ("FromStudent", {"n": 2}),
        "reward": ("ByCondition", {}),
    },
    "reward_model": {"loss": ("Ranking", {"score": "ScalarHead", "comparator": "Logistic"})},
    "rlaif": {
        "loss": ("PolicyGradient", {"advantage": "GAE", "surrogate": None, "reward_kl": 0.05}),
        "rollout": ("FromStudent", {"n": 1}),
        "reward": ("Grade", {}),
    },
    "rlaif_reward_model": {
        "loss": ("Ranking", {"score": "ScalarHead", "comparator": "SoftLabels"})
    },
    "sdft": {
        "loss": ("ReverseKL", {"temperature": 1.0}),
        "rollout": ("FromStudent", {"n": 1}),
        "teacher": ("Privileged", {"decay": 0.99, "every": 1}),
    },
}
ON_PAIRS = ("crlft", "reward_model", "rlaif_reward_model")
INNER = {
    "ppo": {"advantage": {"discount": 1.0, "trace": 0.95}, "surrogate": {"low": 0.2}},
    "rlaif": {"advantage": {"discount": 1.0, "trace": 1.0}},
    "quark": {"terms": {"ce": 1.0, "kl": 0.05, "entropy": -0.06}},
}
QUICK = ("oaif", "sdft")


def short(told) -> str:
    return str(told["class_path"]).rsplit(".", 1)[1]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED],
)
def test_two_steps(name, tmp_path):
    experiment = "demo_preference" if name in ON_PAIRS else "demo"
    args = [
        f"--model.student={CONFIGS / 'student/demo.yaml'}", "--trainer.num_sanity_val_steps=0",
        "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.callbacks=null",
        f"--trainer.logger={CONFIGS / 'logger/csv.yaml'}", "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.val_check_interval=null", f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--data.batch_size=2", "--data.train_rows=20", "--data.validation_rows=10",
    ]  # fmt: skip
    if "rollout" in EXPECTED[name]:
        inner = "inner.init_args." if name == "ppo" else ""
        args += [f"--model.rollout.init_args.{inner}sampling.max_new_tokens=6"]
    files = ["-c", CONFIGS / f"experiment/{experiment}.yaml", "-c", CONFIGS / f"method/{name}.yaml"]
    assert main(["fit", *map(str, files), *args]) == 0
    ran = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]
    for part, (kind, told) in EXPECTED[name].items():
        assert short(ran[part]) == kind
        for key, value in told.items():
            found = ran[part]["init_args"][key]
            assert (short(found) if isinstance(found, dict) else found) == value, key
    for part, told in INNER.get(name, {}).items():
        found = ran["loss"]["init_args"][part]
        if part == "terms":
            assert {key: term["weight"] for key, term in found.items()} == told
        else:
            assert {key: found["init_args"][key] for key in told} == told
    [table] = (tmp_path / "run").rglob("metrics.csv")
    with table.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("train/loss")]
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/loss"]) == float(row["train/loss"])
        if "reward" in EXPECTED[name]:
            assert float(row["train/reward/dropped_groups"]) == 0
            assert 0 <= float(row["train/reward"]) <= 1
    if name == "ppo":  # the first update is the drawing policy's own
        assert float(rows[0]["train/clipped"]) == 0 < float(rows[1]["train/clipped"]) <= 1
    if name in ("oaif", "rlcd_online"):  # of two answers one wins what the other loses
        assert all(float(row["train/reward"]) == pytest.approx(0.5, abs=1e-6) for row in rows)
        assert all(float(row["train/reward/std"]) > 0 for row in rows)
