"""Methods that learn from rankings or rewards run over the demo, and their formula is what runs."""

import csv

import pytest
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
EXPERIMENT = CONFIGS / "experiment/demo_preference.yaml"
METHODS = [
    "dpo", "kto", "orpo", "pro",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in [
            "cpo", "cyclealign", "ipo", "knowpat", "robust_dpo", "rrhf", "simpo", "slic", "spin",
            "stable_alignment", "zephyr",
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_two_steps(name, tmp_path):
    args = [
        f"--model.student={CONFIGS / 'student/demo.yaml'}", "--trainer.num_sanity_val_steps=0",
        "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.callbacks=null",
        "--trainer.logger=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--trainer.val_check_interval=null",
        f"--trainer.default_root_dir={tmp_path / 'run'}", "--model.answers.max_new_tokens=4",
        "--data.batch_size=2", "--data.train_rows=20", "--data.validation_rows=10",
        "--model.graded_rows=2", *(["--data.unpaired=4"] if name == "kto" else []),
    ]  # fmt: skip
    method = CONFIGS / f"method/{name}.yaml"
    assert main(["fit", "-c", str(EXPERIMENT), "-c", str(method), *args]) == 0
    ran = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["loss"]["init_args"]
    leaf = yaml.safe_load(method.read_text())["model"]["loss"]
    told = yaml.safe_load((method.parent / leaf).read_text())["init_args"]
    for key, value in told.items():
        named = value if isinstance(value, dict) else {"class_path": value}
        if key in ("score", "comparator"):
            assert ran[key]["class_path"].rsplit(".", 1)[1] == named["class_path"]
            for each, number in named.get("init_args", {}).items():
                assert ran[key]["init_args"][each] == number
        else:
            assert ran[key] == value


REWARDED = {
    "direct_rlaif": "Judge",
    **dict.fromkeys(("dr_grpo", "gkd_with_reward", "grpo", "rloo"), "Grade"),
}


@pytest.mark.parametrize(
    "name",
    [
        "direct_rlaif", "grpo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("dr_grpo", "gkd_with_reward", "rloo")),
    ],
)  # fmt: skip
def test_rewarded_answers(name, tmp_path):
    args = [
        f"--model.student={CONFIGS / 'student/demo.yaml'}", "--trainer.num_sanity_val_steps=0",
        "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.callbacks=null",
        "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
        "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
        "--trainer.enable_model_summary=false", "--trainer.val_check_interval=null",
        f"--trainer.default_root_dir={tmp_path / 'run'}", "--model.answers.max_new_tokens=4",
        "--data.batch_size=2", "--data.train_rows=20", "--data.validation_rows=10",
        "--model.graded_rows=2", "--model.rollout.init_args.n=2",
        "--model.rollout.init_args.sampling.max_new_tokens=6",
    ]  # fmt: skip
    method = CONFIGS / f"method/{name}.yaml"
    assert main(["fit", "-c", str(CONFIGS / "experiment/demo.yaml"), "-c", str(method), *args]) == 0
    ran = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]
    assert ran["reward"]["class_path"].rsplit(".", 1)[1] == REWARDED[name]
    [table] = tmp_path.rglob("metrics.csv")
    with table.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("train/reward")]
    assert len(rows) == 2
    for row in rows:
        assert -1 <= float(row["train/reward"]) <= 1
        assert float(row["train/reward/dropped_groups"]) == 0
        if name == "direct_rlaif":
            assert float(row["train/reward/std"]) > 0
