"""Each stage is a command that its own parser accepts, in the first round and later."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from kd_lightning.application import KDParser
from kd_lightning.cli import main
from kd_lightning.elicitation import load
from kd_lightning.knowledge.engine import Elicitation
from kd_lightning.pipeline.run import Pipeline
from tests.conftest import ROOT

STAR = ("star", "rest", "rest_em", "orca", "recomp_extractive")


@pytest.mark.parametrize("name", STAR)
def test_every_stage_is_a_command(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    load()
    parser = KDParser.of(Pipeline, "kd pipeline")
    made = Pipeline(**parser.made(parser.parse_args(["-c", f"configs/pipeline/{name}.yaml"])))
    made.check()
    for number in {1, min(2, made.rounds)}:
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
