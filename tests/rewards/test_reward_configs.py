"""Rewards as they are written in YAML."""

import pytest
import yaml
from jsonargparse import ArgumentParser

from kd_lightning.rewards import Combine, Reward
from tests.conftest import ROOT

LEAVES = sorted((ROOT / "configs/reward").glob("*.yaml"))


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.stem)
def test_every_leaf_makes_its_reward(leaf):
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(Reward, "reward", required=True)
    made = parser.instantiate(parser.parse_args([f"--reward={leaf}"])).reward
    assert type(made).__name__ == yaml.safe_load(leaf.read_text())["class_path"]
    if isinstance(made, Combine):
        assert all(isinstance(part, Reward) for part in made.parts)


def test_a_judge_of_its_own_in_yaml(tmp_path):
    path = tmp_path / "judge.yaml"
    generator = {"class_path": "Scripted", "init_args": {"rule": {"class_path": "DemoRule"}}}
    told = {"class_path": "Judge", "init_args": {"generator": generator, "by": "text"}}
    path.write_text(yaml.safe_dump(told))
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(Reward, "reward", required=True)
    made = parser.instantiate(parser.parse_args([f"--reward={path}"])).reward
    assert type(made.generator).__name__ == "Scripted"
