"""What a user types: composition, overrides, habits, and every way to get it wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT
from tests.tiny import config

ROWS = [
    {"instruction": f"Say {word}.", "output": f"{word} it is."}
    for word in [
        "red",
        "green",
        "blue",
        "white",
        "black",
        "brown",
        "pink",
        "grey",
        "gold",
        "teal",
        "lime",
        "rust",
    ]
]


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def experiment(tmp_path, tiny_teacher, rows) -> Path:
    """A whole run on nothing but what the test made."""
    path = tmp_path / "experiment.yaml"
    told = {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path / "run"),
            "logger": [{"class_path": "kd_lightning.loggers.MetricsFile"}],
        },
        "model": {
            "student": {"config": config(), "tokenizer": tiny_teacher},
            "teacher": {"class_path": "LocalTeacher", "init_args": {"path": tiny_teacher}},
            "loss": "ForwardKL",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {
            "class_path": "InstructionFollowing",
            "init_args": {"path": str(rows), "validation_share": 0.25, "batch_size": 2},
        },
    }
    path.write_text(yaml.safe_dump(told))
    return path


def said(capsys, *args: str) -> tuple[int, str, str]:
    code = main(list(args))
    out = capsys.readouterr()
    return code, out.out, out.err


def printed(capsys, *args: str) -> dict:
    """The resolved configuration of a `fit`."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *args, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_help_is_light():
    code = "import sys; from kd_lightning.cli import main; main(['--help'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("False\n")
    for command in ("fit", "validate", "test", "predict", "evaluate", "export"):
        assert f"\n  {command} " in done.stdout


def test_later_files_and_overrides_win(capsys, experiment):
    method = ROOT / "configs/method/hinton.yaml"
    found = printed(capsys, "-c", str(experiment), "-c", str(method), "--trainer.max_steps=7")
    assert found["trainer"]["max_steps"] == 7 and found["seed_everything"] == 3
    terms = found["model"]["loss"]["init_args"]["terms"]
    assert terms["kl"]["loss"]["class_path"] == "kd_lightning.losses.ForwardKL"
    one = printed(
        capsys, "-c", str(experiment), "--model.loss=ReverseKL", "--model.loss.temperature=2"
    )
    assert one["model"]["loss"]["class_path"] == "kd_lightning.losses.ReverseKL"
    assert one["model"]["loss"]["init_args"]["temperature"] == 2.0


def test_interpolation_follows_an_override(capsys, experiment, tmp_path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("model:\n  student:\n    tokenizer: ${model.teacher.init_args.path}\n")
    found = printed(capsys, "-c", str(experiment), "-c", str(layer), "--model.teacher.path=other")
    assert found["model"]["student"]["tokenizer"] == "other"


def test_fit_leaves_a_record(capsys, experiment, tmp_path):
    assert main(["fit", "-c", str(experiment)]) == 0
    told = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert told["model"]["optimizer"]["init_args"]["lr"] == 0.001
    metrics = (tmp_path / "run/metrics.csv").read_text()
    for name in ("train/loss", "train/kl", "train/reverse_kl", "train/jsd", "train/ce",
                 "train/perplexity", "train/agreement", "train/entropy", "train/teacher_entropy",
                 "train/tokens", "train/lr", "train/gradient_norm"):  # fmt: skip
        assert name in metrics.splitlines()[0], name


def test_a_run_goes_again_from_its_record(capsys, experiment, tmp_path):
    assert main(["fit", "-c", str(experiment)]) == 0
    again = [
        "-c",
        str(tmp_path / "run/config.yaml"),
        f"--trainer.default_root_dir={tmp_path / '2'}",
    ]
    assert main(["fit", *again]) == 0
    first, second = ((tmp_path / r / "metrics.csv").read_text() for r in ("run", "2"))
    assert first == second


def test_a_callback_that_is_named_alone_runs(experiment, tmp_path):
    alone = "--trainer.callbacks=callbacks.ExportStudent"
    assert main(["fit", "-c", str(experiment), alone, "--trainer.enable_checkpointing=false"]) == 0
    assert (tmp_path / "run/student/model.safetensors").is_file()
    assert not (tmp_path / "run/checkpoints").exists()


def test_habits_become_settings_of_the_distiller(experiment, tmp_path):
    from kd_lightning.application import run

    habits = ["--trainer.accumulate_grad_batches=3", "--trainer.gradient_clip_val=0.5"]
    done = run(["fit", "-c", str(experiment), *habits], ["fit"])
    assert done.model.micro_batch_rows == 2 and done.datamodule.batch_size == 6
    assert done.datamodule.eval_batch_size == 2  # what fits on the device stays what fits
    assert done.model.gradient_clip_norm == 0.5
    assert done.trainer.global_step == 2
    told = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert told["data"]["init_args"]["batch_size"] == 6


def test_validate_test_and_predict(capsys, experiment):
    for command in ("validate", "test", "predict"):
        assert main([command, "-c", str(experiment), "--model.answers.max_new_tokens=4"]) == 0
    assert "test/rouge_l" in capsys.readouterr().out


def broken_rows(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return f"--data.path={path}"


GOOD = json.dumps(ROWS[0]) + "\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--model.loss=ReversKL"], ["ReversKL", "ReverseKL"]),
        (["--data=InstructionFolowing"], ["InstructionFolowing", "InstructionFollowing"]),
        (["--model.teacher=LocalTeach"], ["LocalTeach", "LocalTeacher"]),
        (["--model.loss.temprature=2"], ["temprature", "mean temperature"]),
        (["--trainer.max_step=3"], ["did you mean trainer.max_steps"]),
        (["--model.student.layrs=3"], ["did you mean model.student.layers"]),
        (["--model.optimizer=Adm"], ["Adm", "Adam"]),
        (["--model.loss.temperature=warm"], ["temperature", "warm"]),
        (["--model.loss.temperature=-1"], ["temperature", "-1"]),
        (["--model.student.path=./nowhere", "--model.student.config=null"], ["./nowhere"]),
        (["--model.teacher.path=./nowhere"], ["./nowhere"]),
        (["--data.path=nothing.jsonl"], ["nothing.jsonl"]),
        (["--data.max_length=8"], ["max_length"]),
        (["--trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["--trainer.gradient_clip_algorithm=value"], ["norm"]),
        (["--model.teacher=null"], ["teacher"]),
        (["-c", "missing.yaml"], ["missing.yaml"]),
        (["--data=Demo", "--data.path=rows.jsonl"], ["Demo makes its own rows"]),
        (["--ckpt_path=nowhere.ckpt"], ["there is no checkpoint nowhere.ckpt"]),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(capsys, experiment, wrong, words):
    code, _, err = said(capsys, "fit", "-c", str(experiment), *wrong)
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and sentence.startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        (GOOD + '{"instruction": "cut\n', ["broken.jsonl", "2"]),
        (GOOD + '{"instruction": "no answer"}\n', ["broken.jsonl", "2", "answer"]),
        (
            GOOD.encode() + b'{"instruction": "\xff", "output": "x"}\n',
            ["broken.jsonl", "2", "UTF-8"],
        ),
    ],
)
def test_wrong_files_are_named_with_their_line(capsys, experiment, tmp_path, text, words):
    code, _, err = said(capsys, "fit", "-c", str(experiment), broken_rows(tmp_path, text))
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and sentence.startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word in sentence, sentence


def test_an_existing_run_is_not_overwritten(capsys, experiment, tmp_path):
    assert main(["fit", "-c", str(experiment)]) == 0
    before = (tmp_path / "run/metrics.csv").read_bytes()
    code, _, err = said(capsys, "fit", "-c", str(experiment))
    assert code == 2 and "default_root_dir" in err and "Traceback" not in err
    assert (tmp_path / "run/metrics.csv").read_bytes() == before


def test_a_command_without_a_configuration_says_what_to_give(capsys):
    code, _, err = said(capsys, "fit")
    assert code == 2 and "model.loss" in err and "-c configs/experiment/demo.yaml" in err


def test_unknown_commands_are_named(capsys):
    code, _, err = said(capsys, "fitt")
    assert code == 2 and "did you mean fit" in err


def test_a_loss_that_is_not_finite_stops_with_one_sentence(capsys, experiment, tmp_path):
    hot = ["--model.optimizer.lr=1e30", "--trainer.max_steps=20"]
    code, _, err = said(capsys, "fit", "-c", str(experiment), *hot)
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and "stopped before the optimizer moved" in sentence
    assert "rows.jsonl" in sentence and list((tmp_path / "run/not_finite").glob("*.ckpt"))


def test_evaluate_and_export_from_a_runs_record(capsys, experiment, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(["fit", "-c", str(experiment)]) == 0
    record = ["-c", str(tmp_path / "run/config.yaml")]
    weights = f"--ckpt_path={tmp_path / 'run/checkpoints/last.ckpt'}"
    assert main(["export", *record, weights, f"--output={tmp_path / 'student'}"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").num_parameters() > 1000
    assert (tmp_path / "student/README.md").is_file()
    short = "--model.answers.max_new_tokens=4"
    assert main(["evaluate", *record, weights, short, f"--output={tmp_path / 'a'}"]) == 0
    student = f"--student={tmp_path / 'student'}"
    assert main(["evaluate", *record, student, short, f"--output={tmp_path / 'b'}"]) == 0
    one, two = (json.loads((tmp_path / r / "comparison.json").read_text()) for r in "ab")
    kl = [r["columns"]["student"]["metrics"]["kl"] for r in (one, two)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-5) and kl[0] > 0.1
    code, _, err = said(capsys, "evaluate", *record, student, weights)
    assert code == 2 and "not both" in err


def test_the_whole_configuration_reaches_every_logger(experiment, tmp_path):
    from tests.callbacks.wandb_file import read_run

    layer = ["--trainer.logger", str(ROOT / "configs/logger/all.yaml")]
    assert main(["fit", "-c", str(experiment), *layer]) == 0
    wandb.finish()  # otherwise at the end of the process
    run = tmp_path / "run"
    assert "train/loss" in (run / "metrics.csv").read_text()
    told = yaml.safe_load((run / "config.yaml").read_text())
    board = yaml.safe_load((run / "tensorboard/hparams.yaml").read_text())
    dashboard, _ = read_run(run)
    for held in (told, board, dashboard):
        assert held["model"]["optimizer"]["init_args"]["lr"] == 0.001
        assert held["data"]["init_args"]["batch_size"] == 2 and held["seed_everything"] == 3
