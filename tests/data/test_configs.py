"""Data modules as they are written in YAML and on the command line."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import kd_lightning.data
from kd_lightning.data.base import KDDataModule
from kd_lightning.data.mixture import Mixture
from kd_lightning.data.skills import InstructionFollowing, PlainText, Thinking
from kd_lightning.data.verticals import Medicine

ROOT = Path(__file__).parents[2]
LEAVES = sorted((ROOT / "configs" / "data").rglob("*.yaml"))


def parse(*arguments):
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(KDDataModule, "data", required=True)
    return parser.instantiate_classes(parser.parse_args(list(arguments))).data


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.stem)
def test_every_leaf_makes_its_data_module(leaf):
    made = parse(f"--data={leaf}")
    named = yaml.safe_load(leaf.read_text())["class_path"].rsplit(".", 1)[1]
    assert type(made).__name__ == named


def test_a_users_own_file_on_the_command_line():
    made = parse(
        "--data=kd_lightning.data.skills.InstructionFollowing",
        "--data.path=my.jsonl",
        "--data.columns.prompt=question",
        "--data.columns.answer=instances.0.output",
    )
    assert isinstance(made, InstructionFollowing)
    assert made.splits.paths == {"train": "my.jsonl"}
    assert made.columns == {"prompt": "question", "answer": "instances.0.output"}


@pytest.mark.parametrize("kind", [InstructionFollowing, Thinking, Medicine, PlainText])
def test_short_names(kind):
    assert type(parse(f"--data={kind.__name__}", "--data.path=a.jsonl")) is kind
    package = "verticals" if kind is Medicine else "skills"
    assert getattr(getattr(kd_lightning.data, package), kind.__name__) is kind


def test_a_path_for_each_split():
    made = parse("--data=PlainText", '--data.path={"train": "a.jsonl", "validation": "b.jsonl"}')
    assert made.splits.paths == {"train": "a.jsonl", "validation": "b.jsonl"}


def test_a_mixture_in_yaml(tmp_path):
    leaf = ROOT / "configs" / "data" / "skill" / "thinking.yaml"
    config = tmp_path / "mixture.yaml"
    parts = {
        "maths": {"data": str(leaf), "ratio": 2},
        "text": {"data": {"class_path": "PlainText", "init_args": {"path": "t.txt"}}},
    }
    config.write_text(yaml.safe_dump({"class_path": "Mixture", "init_args": {"parts": parts}}))
    made = parse(f"--data={config}", "--data.batch_size=4")
    assert isinstance(made, Mixture)
    assert made.skills == ("maths", "text")
    assert isinstance(made.parts["maths"].data, Thinking)
    assert (made.parts["maths"].ratio, made.parts["text"].ratio) == (2.0, 1.0)
    assert made.batch_size == 4


def test_every_argument_is_described():
    parser = ArgumentParser()
    parser.add_class_arguments(PlainText, "data")
    described = {a.dest: a.help for a in parser._actions if a.dest.startswith("data.")}
    assert "data.max_length" in described
    assert all(described.values())
