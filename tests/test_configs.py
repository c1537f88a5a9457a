"""Every YAML parses; every experiment takes two steps with the demo pair put in."""

from __future__ import annotations

import json

import pytest
import yaml

from kd_lightning.application import KDParser
from kd_lightning.cli import main
from kd_lightning.curate.corpus import Corpus
from kd_lightning.elicitation import load
from kd_lightning.knowledge.engine import Elicitation
from kd_lightning.pipeline.run import Pipeline
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
METHODS = sorted((CONFIGS / "method").glob("*.yaml"))
KEYS = {
    "student": "--model.student",
    "teacher": "--model.teacher",
    "loss": "--model.loss",
    "rollout": "--model.rollout",
    "reward": "--model.reward",
    "data": "--data",
    "trainer": "--trainer",
    "logger": "--trainer.logger",
    "callbacks": "--trainer.callbacks",
}
"""Where the leaves of a folder belong."""
LEAVES = [p for folder in KEYS for p in sorted((CONFIGS / folder).rglob("*.yaml"))]
ELICIT = sorted((CONFIGS / "elicit").glob("*.yaml"))
PIPELINES = sorted((CONFIGS / "pipeline").glob("*.yaml"))
ROW = {
    "instruction": "Add 3 and 4.",
    "question": "What is 3 and 4?",
    "answer": "3 + 4 = 7\n#### 7",
    "response": "It is 7.",
    "output": "It is 7.",
    "text": "3 + 4 = 7",
}


def names(paths):
    return [str(p.relative_to(CONFIGS).with_suffix("")) for p in paths]


def printed(capsys, *args: str) -> dict:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *args, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_experiments_parse(capsys, path):
    found = printed(capsys, "-c", str(path))
    assert found["trainer"]["default_root_dir"] == f"runs/{path.stem}"
    assert found["model"]["loss"]["class_path"].startswith("kd_lightning.losses.")


@pytest.mark.parametrize("path", METHODS, ids=names(METHODS))
def test_methods_name_their_source_and_lie_over_an_experiment(capsys, path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    told = yaml.safe_load(path.read_text())
    assert "data" not in told and "student" not in told.get("model", {})
    found = printed(capsys, "-c", str(CONFIGS / "experiment/demo.yaml"), "-c", str(path))
    assert found["model"]["student"]["config"]["model_type"] == "llama"


@pytest.mark.parametrize("path", LEAVES, ids=names(LEAVES))
def test_leaves_parse_where_they_belong(capsys, path):
    folder = path.relative_to(CONFIGS).parts[0]
    printed(capsys, "-c", str(CONFIGS / "experiment/demo.yaml"), f"{KEYS[folder]}={path}")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_experiments_take_two_steps_with_the_demo_pair(path, tmp_path, monkeypatch):
    told = yaml.safe_load(path.read_text())
    if "shared" in path.read_text():
        monkeypatch.setenv("KD_SHARED", str(tmp_path))
    args = [
        f"--model.student={CONFIGS / 'student/demo.yaml'}",
        f"--model.teacher={CONFIGS / 'teacher/demo.yaml'}",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.precision=32-true", "--trainer.limit_val_batches=1",
        "--trainer.callbacks=null", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0",
        "--trainer.val_check_interval=null", f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--model.answers.max_new_tokens=4", "--data.batch_size=2", "--data.num_workers=0",
    ]  # fmt: skip
    kind = told["data"]["class_path"] if isinstance(told["data"], dict) else "Demo"
    if kind != "Demo":
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(ROW) + "\n" for _ in range(12)))
        args += [f"--data.path={rows}", "--data.validation=null", "--data.validation_share=0.2"]
        args += ["--data.max_length=200"]
        args += ["--data.end=eos"] if kind == "PlainText" else []
    else:
        args += ["--data.train_rows=16", "--data.validation_rows=5"]
        args += ["--data.knowledge=null"]
    assert main(["fit", "-c", str(path), *args]) == 0
    assert (tmp_path / "run/config.yaml").is_file()


@pytest.mark.parametrize("path", ELICIT, ids=names(ELICIT))
def test_elicitations_bind_every_step(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    load()
    parser = KDParser.of(Elicitation, "kd elicit")
    made = Elicitation(**parser.made(parser.parse_args(["-c", str(path)])))
    made.terms_override = "a test"
    monkeypatch.setattr(Corpus, "texts", ("a benchmark's text",))  # the files are the user's
    made.check()
    assert made.output == f"runs/elicit/{path.stem}" or path.stem in made.output
    for step in made.steps:
        json.dumps(step.settings())


@pytest.mark.parametrize("path", PIPELINES, ids=names(PIPELINES))
def test_pipelines_refer_to_what_is_there(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = KDParser.of(Pipeline, "kd pipeline")
    made = Pipeline(**parser.made(parser.parse_args(["-c", str(path)])))
    made.check()
    assert made.output == f"runs/pipeline/{path.stem}"
