"""Losses as they are written in configurations."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from kd_lightning.losses.base import Loss
from kd_lightning.losses.scores import ScalarHead
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.losses.weighted import Weighted
from kd_lightning.schedules import Cosine
from tests.losses.kit import LOSSES, Toy, four_answers, total

FILES = sorted((Path(__file__).parents[2] / "configs" / "loss").glob("*.yaml"))


class Holder:
    def __init__(self, loss: Loss) -> None:
        self.loss = loss


def parse(*arguments):
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True
    )
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_class_arguments(Holder, None, sub_configs=True)
    config = parser.parse_args(list(arguments))
    return parser, config, parser.instantiate(config).loss


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_makes_a_loss_that_learns(path):
    _, _, loss = parse(f"--loss={path}")
    assert type(loss).__name__ == yaml.safe_load(path.read_text())["class_path"]
    width = next((m.width for m in loss.modules() if isinstance(m, (ScalarHead, ValueHead))), 5)
    student, teacher = Toy(0, width), Toy(1).requires_grad_(False)
    batch, weight = four_answers(), student.head.layer.weight
    if getattr(getattr(loss, "score", None), "reads_texts", False):  # the first row asks; no head
        batch = batch.replace(group=torch.zeros(4), reward=torch.tensor([torch.nan, 1, 0, 0]))
        weight = student.embedding.weight
    total(loss, student(batch), teacher(batch), batch).backward()
    learned = [weight, *loss.parameters()]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)


def test_every_loss_has_a_file():
    named = {yaml.safe_load(path.read_text())["class_path"] for path in FILES}
    assert named == {cls.__name__ for cls in LOSSES}


def test_hard_and_soft_targets():
    path = next(p for p in FILES if p.stem == "ce_kl")
    parser, config, loss = parse(f"--loss={path}")
    assert isinstance(loss, Weighted)
    assert loss.weights() == {"ce": 0.5, "kl": 0.5}
    soft = loss.losses["kl"]
    assert (soft.temperature, soft.square_temperature) == (2.0, True)
    again = yaml.safe_load(parser.dump(config))["loss"]["init_args"]["terms"]
    assert again["kl"]["loss"]["init_args"]["temperature"] == 2.0
    assert again["ce"]["weight"] == 0.5


def test_terms_written_inline_and_with_a_schedule(tmp_path):
    path = tmp_path / "loss.yaml"
    path.write_text(
        """
        class_path: Weighted
        init_args: {terms: {
          ce: {loss: CrossEntropy, weight: {class_path: Cosine, init_args: {start: 1.0, end: 0.0}}},
          kl: {loss: {class_path: ForwardKL, init_args: {temperature: 2.0}}, weight: 0.5}}}
        """
    )
    _, _, loss = parse(f"--loss={path}")
    assert isinstance(loss.factors["ce"], Cosine)
    assert loss.weights() == {"ce": 1.0, "kl": 0.5}


def test_a_file_may_be_overridden_on_the_command_line():
    path = next(p for p in FILES if p.stem == "forward_kl")
    _, _, loss = parse(f"--loss={path}", "--loss.temperature=4")
    assert loss.temperature == 4
    _, _, loss = parse("--loss=JensenShannon", "--loss.beta=0.1")
    assert loss.beta == 0.1
    assert isinstance(loss, torch.nn.Module)
