"""What the README says is true of the files."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from kd_lightning.cli import COMMANDS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
TABLES = (ROOT / "docs/methods.md").read_text()
METHODS = sorted((ROOT / "configs/method").glob("*.yaml"))
PIPELINES = sorted((ROOT / "configs/pipeline").glob("*.yaml"))


def row(path) -> str:
    """A method's line of the table: its file, what it is, whose it is."""
    lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    return f"| `{path.stem}` | {' '.join(lines)} |"


def test_every_method_and_pipeline_is_in_the_tables():
    for path in (*METHODS, *PIPELINES):
        assert row(path) in TABLES, f"docs/methods.md needs the line:\n{row(path)}"
    for path in METHODS:
        assert f"`{path.stem}`" in README, f"README.md names the methods: {path.stem} is missing"


def test_commands_and_files_exist():
    assert "@@" not in README
    for name in re.findall(r"configs/[\w/.]+\.yaml", README + TABLES):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / name).is_file(), name
    for command in re.findall(r"python train\.py (\w+)", README):
        assert command in COMMANDS


def test_every_loss_and_skill_is_named():
    import kd_lightning.data as data
    import kd_lightning.losses as losses

    for name in (*losses.__all__, *data.__all__):
        kind = getattr(losses, name, None) or getattr(data, name)
        if not getattr(kind, "__abstractmethods__", None):
            assert f"`{name}`" in README or name == "Term", name


@pytest.mark.parametrize(
    "block", re.findall(r"^    (python train\.py fit .*?)$(?!\n {6})", README, re.M)
)
def test_fit_lines_parse(block, capsys):
    from kd_lightning.cli import main

    words = shlex.split(block.replace("\\", ""))[2:]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["loss"]
