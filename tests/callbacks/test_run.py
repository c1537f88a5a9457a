"""One run with every callback and every logger, looked at from all sides."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

import callbacks as ours
from kd_lightning.errors import KDError
from kd_lightning.evaluation.measure import measure
from kd_lightning.loggers import (
    MetricsFile,
    TensorBoardRun,
    WandbRun,
    place_loggers,
    read_metrics,
)
from tests.callbacks.wandb_file import read_run
from tests.evaluation.pair import distiller, documents, instructions, mixture, trainer

CONFIG = {"model": {"loss": {"class_path": "ForwardKL"}}, "data": {"path": "rows.jsonl"}}


def all_callbacks(**more):
    return [
        ours.RunRecord(),
        ours.DistillationProgress(log_every_seconds=0.0),
        ours.Throughput(),
        ours.LogAnswers(prompts=3),
        ours.Comparison(rows=2),
        ours.ExportStudent(),
        ours.RunCheckpoint(monitor="val/loss", **more),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher):
    """A finished run: its folder, its trainer, its module, its data."""
    folder = tmp_path_factory.mktemp("run")
    files = tmp_path_factory.mktemp("files")
    loggers = [WandbRun(), MetricsFile(), TensorBoardRun()]
    place_loggers(loggers, folder)
    loggers[0].log_hyperparams(CONFIG)
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(files)
    made = trainer(
        folder,
        logger=loggers,
        callbacks=all_callbacks(),
        max_steps=6,
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    torch.manual_seed(0)
    made.fit(module, data)
    loggers[0].experiment.finish()
    return folder, made, module, data


def test_the_record_names_command_versions_and_platform(run):
    folder, *_ = run
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert start["versions"]["torch"] == torch.__version__
    assert {"python", "lightning", "transformers", "kd_lightning"} <= set(start["versions"])
    assert start["command"] and start["platform"] and "git" in start


def test_metrics_csv_holds_the_curves(run):
    folder, *_ = run
    rows = read_metrics(folder / "metrics.csv")
    steps = [int(r["step"]) for r in rows if r.get("train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len([r for r in rows if r["val/kl"]]) == 3
    assert all(float(r["train/loss"]) > 0 for r in rows if r["train/loss"])
    speeds = [r for r in rows if r["train/tokens_per_second"]]
    assert len(speeds) == 6 and all(float(r["train/tokens_per_second"]) > 0 for r in speeds)


def test_tokens_seen_are_the_tokens_of_the_batches(run):
    folder, _, _, data = run
    rows = [r for r in read_metrics(folder / "metrics.csv") if r["train/tokens_seen"]]
    per_epoch = sum(len(row) - 1 for row in data.encoded("train"))
    assert float(rows[-1]["train/tokens_seen"]) == 3 * per_epoch  # 6 steps of 2 an epoch


def test_answers_of_each_validation(run):
    folder, _, module, data = run
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 3
    examples = data.examples("validation")[:3]
    assert [r["id"] for r in rows[:3]] == [e.id for e in examples]
    assert [r["reference"] for r in rows[:3]] == [e.answer for e in examples]
    prompts = [data.prompt_ids(e) for e in examples]
    teacher = [c.text for c in module.teacher.complete(prompts, module.answers)]
    assert [r["teacher"] for r in rows[-3:]] == teacher
    student = [c.text for c in module.student.complete(prompts, module.answers)]
    assert [r["student"] for r in rows[-3:]] == student
    last = measure(module.student, data, "validation", module.teacher, rows=3)
    for row, answer in zip(rows[-3:], last.answers, strict=True):
        assert row["kl"] == pytest.approx(answer.kl, rel=1e-4)
        assert row["grade"] == row["grades"]["rouge_l"]


def test_the_comparison_is_the_measurement_of_the_models(run):
    folder, made, module, data = run
    columns = json.loads((folder / "comparison.json").read_text())["columns"]
    assert list(columns) == ["teacher", "student before", "student after"]
    # the last step is the best here, so the module still has the measured weights
    expected = measure(module.student, data, "validation", module.teacher, rows=0).metrics
    for name in ("kl", "ce", "agreement", "entropy"):
        assert columns["student after"]["metrics"][name] == pytest.approx(expected[name], rel=1e-4)
    before = columns["student before"]["metrics"]["kl"]
    assert columns["student after"]["metrics"]["kl"] < before
    val = [r for r in read_metrics(folder / "metrics.csv") if r["val/kl"]]
    assert float(val[-1]["val/kl"]) == pytest.approx(expected["kl"], rel=1e-4)


def test_plots_in_the_folder(run):
    folder, *_ = run
    names = {p.stem for p in (folder / "plots").glob("*.png")}
    assert names == {"loss", "kl", "kl_by_position", "agreement_by_position", "comparison"}


def test_checkpoints_are_in_the_run_whatever_the_loggers(run):
    folder, *_ = run
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {
        *("last.ckpt", "best.ckpt"),
        *(f"step{n:06d}.ckpt{part}" for n in (4, 6) for part in ("", ".manifest.json")),
    }


def test_the_exported_student(run):
    folder, _, module, _ = run
    loaded = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    ids = torch.randint(4, 80, (2, 9))
    with torch.no_grad():
        expected = module.student.eval().transformer(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    card = (folder / "student" / "README.md").read_text()
    assert "student before" in card and "ForwardKL" in card and "rows.jsonl" in card


def test_the_offline_run_is_read_back(run):
    folder, *_ = run
    config, history = read_run(folder)
    assert config["model"] == CONFIG["model"] and config["data"] == CONFIG["data"]
    loss = [(h["trainer/global_step"], h["train/loss"]) for h in history if "train/loss" in h]
    stored = [r for r in read_metrics(folder / "metrics.csv") if r["train/loss"]]
    assert [s for s, _ in loss] == [1, 2, 3, 4, 5, 6]
    assert [v for _, v in loss] == [float(r["train/loss"]) for r in stored]
    assert len([h for h in history if "val/kl" in h]) == 3
    tables = [h["answers"] for h in history if "answers" in h]
    assert len(tables) == 3
    (files,) = folder.glob("wandb/offline-run-*/files")
    table = json.loads((files / tables[-1]["path"]).read_text())
    assert table["columns"] == list(ours.log_answers.COLUMNS)
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    written = [[row[name] for name in table["columns"]] for row in rows[-3:]]
    assert table["data"] == written
    assert any("plots/loss" in h for h in history) and any("comparison" in h for h in history)
    assert list(files.glob("media/images/plots/loss*.png"))


def test_tensorboard_has_curves_and_plots(run):
    folder, *_ = run
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert len(events.Scalars("train/loss")) == 6
    assert "plots/loss" in events.Tags()["images"]


def test_a_folder_with_a_run_is_refused_and_kept(run, tiny_teacher, tmp_path):
    folder, *_ = run
    before = (folder / "run.json").read_bytes()
    again = trainer(folder, callbacks=[ours.RunRecord()])
    with pytest.raises(KDError, match="already holds a run"):
        again.fit(distiller(tiny_teacher, tiny_teacher), instructions(tmp_path))
    assert (folder / "run.json").read_bytes() == before


def test_a_continued_run_keeps_the_first_measurement_and_appends(tmp_path, tiny_teacher):
    folder = tmp_path / "run"

    def go(steps, ckpt_path=None):
        logger = MetricsFile(str(folder))
        module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
        torch.manual_seed(0 if ckpt_path is None else 99)
        made = trainer(
            folder,
            logger=[logger],
            callbacks=all_callbacks(),
            max_steps=steps,
            enable_checkpointing=True,
            enable_progress_bar=True,
        )
        made.fit(module, data, ckpt_path=ckpt_path)
        return json.loads((folder / "comparison.json").read_text())["columns"]

    first = go(2)
    second = go(4, str(folder / "checkpoints" / "last.ckpt"))
    assert list(second) == ["teacher", "student before", "student after"]
    assert second["student before"] == first["student before"]
    assert second["student after"]["metrics"] != first["student after"]["metrics"]
    rows = read_metrics(folder / "metrics.csv")
    assert [int(r["step"]) for r in rows if r["train/loss"]] == [1, 2, 3, 4]
    seen = [float(r["train/tokens_seen"]) for r in rows if r["train/tokens_seen"]]
    assert len(seen) == 4 and seen == sorted(seen) and seen[-1] == 2 * seen[1]
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2


class WorsenAtTheEnd(Callback):
    """Spoils the weights after the second of three validations."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            with torch.no_grad():
                for parameter in pl_module.student.parameters():
                    parameter.mul_(-3.0)


def test_the_best_weights_are_measured_and_exported_and_the_last_stay(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    made = trainer(
        tmp_path / "run",
        callbacks=[WorsenAtTheEnd(), *all_callbacks()],
        max_steps=6,
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    made.fit(module, data)
    content = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert "best weights by val/loss" in content["weights"] and "step 4" in content["weights"]
    last = measure(module.student, data, "validation", module.teacher, rows=0).metrics
    assert last["kl"] > 1.1 * content["columns"]["student after"]["metrics"]["kl"]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(exported[name], best["state_dict"][f"student.model.{name}"])
    stored = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(stored[f"student.model.{name}"], exported[name])


@pytest.mark.parametrize("kind", ["documents", "no_teacher", "skills"])
def test_other_kinds_of_runs(kind, tmp_path, tiny_teacher):
    make = {"documents": documents, "no_teacher": instructions, "skills": mixture}[kind]
    teacher = None if kind == "no_teacher" else tiny_teacher
    made = trainer(
        tmp_path / "run",
        logger=[MetricsFile(str(tmp_path / "run"))],
        callbacks=all_callbacks(),
        max_steps=2,
        val_check_interval=1,
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    made.fit(distiller(teacher, tiny_teacher), make(tmp_path))
    content = json.loads((tmp_path / "run" / "comparison.json").read_text())["columns"]
    plots = {p.stem for p in (tmp_path / "run" / "plots").glob("*.png")}
    assert ("teacher" in content) == (kind != "no_teacher")
    assert ("kl" in plots) == (kind != "no_teacher")
    if kind == "documents":  # the beginning is the prompt, the rest the reference
        row = json.loads((tmp_path / "run" / "answers.jsonl").read_text().splitlines()[0])
        whole = {e.id: e.answer for e in made.datamodule.examples("validation")}[row["id"]]
        assert row["prompt"] and whole.startswith(row["prompt"]) and row["kl"] > 0
        assert row["reference"] == whole.removeprefix(row["prompt"]).strip()
    if kind == "no_teacher":
        row = json.loads((tmp_path / "run" / "answers.jsonl").read_text().splitlines()[0])
        assert row["teacher"] is None and row["kl"] is None and row["student"] is not None
    if kind == "skills":
        assert set(content["student after"]["skills"]) == {"left", "right"}
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_two_processes_write_one_run(tmp_path, tiny_teacher):
    made = trainer(
        tmp_path / "run",
        strategy="ddp_fork",
        devices=2,
        logger=[MetricsFile(str(tmp_path / "run"))],
        callbacks=all_callbacks(),
        max_steps=2,
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    module.make_optimizer = sgd
    data.tokenizer = module.tokenizer
    made.fit(module, data)
    folder = tmp_path / "run"
    rows = read_metrics(folder / "metrics.csv")
    assert [int(r["step"]) for r in rows if r["train/loss"]] == [1, 2]
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    examples = data.examples("validation")[:3]
    assert [a["id"] for a in answers[:3]] == [e.id for e in examples]
    assert all(a["kl"] is not None for a in answers)
    content = json.loads((folder / "comparison.json").read_text())["columns"]
    tokens = sum(row.answered for row in data.encoded("validation"))
    assert content["student after"]["metrics"]["tokens"] == tokens
    assert (folder / "student" / "model.safetensors").is_file()
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 1


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_the_default_callbacks_are_the_classes_that_exist():
    from tests.conftest import ROOT

    listed = yaml.safe_load((ROOT / "configs" / "callbacks" / "default.yaml").read_text())
    names = [entry["class_path"].rpartition(".")[2] for entry in listed]
    assert len(set(names)) == len(names)
    for entry in listed:
        module, _, name = entry["class_path"].rpartition(".")
        assert module == "callbacks"
        getattr(ours, name)(**entry.get("init_args", {}))
    assert names.index("Comparison") < names.index("ExportStudent")


def test_no_name_is_lightnings():
    import lightning.pytorch.callbacks as theirs

    assert not set(ours.__all__) & set(dir(theirs))
