"""Methods of several stages: every stage is a command, and learns by the method's formula."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import yaml

from kd_lightning.application import KDParser
from kd_lightning.cli import main
from kd_lightning.elicitation import load
from kd_lightning.knowledge.engine import Elicitation
from kd_lightning.pipeline.run import Pipeline
from tests.conftest import ROOT

PREFERENCE, ROWS = "Preference", "InstructionFollowing"
DPO = {"score": "LogRatio", "comparator": "Logistic", "beta": 0.1, "reference": "teacher"}
START = {"decay": 1.0}
HEAD = {"score": {"width": 1024}, "teacher": None, "callback": "ExportRewardModel"}
POLICY = {"rollout": {"n": 1}, "teacher": START, "value": {"width": 1024}, "reward_kl": 0.05}
PPO = {
    **POLICY,
    "advantage": {"discount": 1.0, "trace": 0.95},
    "surrogate": "ClippedRatio",
    "reward_policy": "drawn",
    "rollout": {"epochs": 4, "minibatches": 1},
}
QUARK = {"ce": 1.0, "kl": 0.05, "entropy": -0.06}
EXPECTED = {
    "spin": {"train": (PREFERENCE, {**DPO, "teacher": START})},
    "self_rewarding": {"train": (PREFERENCE, {**DPO, "teacher": START})},
    "zephyr": {
        "supervised": (ROWS, {"loss": "CrossEntropy"}),
        "train": (PREFERENCE, {**DPO, "teacher": START}),
    },
    "rlaif": {
        "reward_model": (PREFERENCE, {**HEAD, "comparator": "SoftLabels"}),
        "policy": (
            ROWS,
            {
                **POLICY,
                "advantage": {"discount": 1.0, "trace": 1.0},
                "surrogate": None,
                "reward": {"scale": 0.95},
            },
        ),
    },
    "rlcd": {
        "reward_model": (PREFERENCE, {**HEAD, "comparator": "Logistic"}),
        "policy": (ROWS, {**PPO, "reward": {"scale": 1.0}}),
    },
    "constitutional_ai": {
        "revised": (ROWS, {"loss": "CrossEntropy"}),
        "reward_model": (PREFERENCE, {**HEAD, "comparator": "SoftLabels"}),
        "policy": (ROWS, {**PPO, "reward": {"scale": 1.0}}),
    },
    "raft": {"train": (ROWS, {"loss": "CrossEntropy"})},
    "quark": {
        "train": (
            ROWS,
            {
                "weights": {"ce": 1.0, "kl": 0.05, "entropy": -0.06},
                "teacher": {"dtype": "bfloat16"},
            },
        )
    },
}
"""The data and what is learned in each stage that trains."""


def short(told) -> str | None:
    return None if told is None else str(told["class_path"]).rsplit(".", 1)[1]


def holds(config, name: str, wanted) -> None:
    """One thing of `EXPECTED` about a stage's configuration."""
    model, loss = config["model"], config["model"]["loss"]
    if name == "callback":
        assert wanted in [short(c) for c in config["trainer"]["callbacks"]]
        return
    if name == "weights":
        terms = loss["init_args"]["terms"]
        assert {key: term["weight"] for key, term in terms.items()} == wanted
        classes = {key: short(term["loss"]) for key, term in terms.items()}
        assert classes == {"ce": "CrossEntropy", "kl": "ReverseKL", "entropy": "Entropy"}
        return
    if name in ("loss", "teacher", "reward", "rollout"):
        found = model[name]
    else:
        found = loss["init_args"][name]
    if isinstance(wanted, dict):
        inner = found.get("init_args", found)
        assert {key: inner[key] for key in wanted} == wanted, name
    else:
        assert (short(found) if isinstance(found, dict) else found) == wanted, name


@pytest.mark.parametrize(
    "name",
    [name if name == "rlaif" else pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED],
)
def test_every_stage_is_a_command_with_the_methods_formula(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    load()
    parser = KDParser.of(Pipeline, "kd pipeline")
    made = Pipeline(**parser.made(parser.parse_args(["-c", f"configs/pipeline/{name}.yaml"])))
    made.check()
    learned = {stage.name for stage in made.stages if stage.command == "fit"}
    assert learned == set(EXPECTED[name])
    for number in sorted({1, min(2, made.rounds)}):
        for stage in made.stages:
            read = {(p, n): Path(f"runs/{n}") for p, n in stage.references(number)}
            command, *told = stage.arguments(number, 0, tmp_path / stage.name, read)
            if command == "elicit":
                elicitation = KDParser.of(Elicitation, "kd elicit")
                Elicitation(**elicitation.made(elicitation.parse_args(told))).check()
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
                main([command, *told, "--print_config"])
            assert stop.value.code == 0, (stage.name, number)
            for path in read.values():
                assert str(path) in printed.getvalue()
            if command == "fit":
                found = yaml.safe_load(printed.getvalue())
                data, wanted = EXPECTED[name][stage.name]
                assert short(found["data"]) == data
                for key, value in wanted.items():
                    holds(found, key, value)
