"""Imports run one way, and names say which library they belong to."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import lightning.pytorch.callbacks
import pytest

import callbacks
from tests.conftest import ROOT

PACKAGE = ROOT / "kd_lightning"
BELOW = {
    "errors": set(),
    "types": {"errors"},
    "discovery": set(),
    "files": {"errors"},
    "schedules": {"types", "errors"},
    "optim": {"errors"},
    "security": {"errors"},
    "kernels": {"types", "errors"},
    "models": {"types", "errors", "kernels", "security"},
    "cache": {"types", "errors", "files", "kernels", "losses", "models", "data"},
    "teachers": {
        "types", "errors", "discovery", "files", "models", "cache", "data", "reliability",
        "security",
    },
    "losses": {"types", "errors", "discovery", "schedules", "kernels"},
    "metrics": {"types", "errors", "losses"},
    "data": {"types", "errors", "discovery", "files", "models", "metrics", "security"},
    "reliability": {"types", "errors", "files"},
    "knowledge": {"types", "errors", "files", "teachers", "data", "security", "tracking"},
    "elicit": {
        "types", "errors", "discovery", "knowledge", "teachers", "data", "security", "cache",
    },
    "curate": {
        "types", "errors", "discovery", "knowledge", "teachers", "data", "security", "metrics",
    },
    "rewards": {
        "types", "errors", "discovery", "data", "teachers", "elicit", "models", "losses",
        "security",
    },
    "rollouts": {
        "types", "errors", "discovery", "schedules", "models", "data", "teachers", "reliability",
        "rewards", "losses",
    },
    "parallel": {"types", "errors", "models", "teachers", "reliability"},
    "distiller": {
        "types", "errors", "kernels", "models", "teachers", "losses", "metrics", "reliability",
        "parallel", "optim", "rollouts", "rewards",
    },
    "tracking": {"errors", "types", "security"},
    "loggers": {"errors", "types", "security"},
    "evaluation": {
        "types", "errors", "models", "teachers", "losses", "metrics", "data", "distiller",
        "tracking", "loggers", "parallel",
    },
    "doctor": {
        "types", "errors", "kernels", "models", "teachers", "losses", "data", "cache", "parallel",
        "reliability", "distiller", "evaluation", "tracking", "trainer", "rollouts", "rewards",
    },
}  # fmt: skip
"""What each part may import; parts that are not named stand at the top and may import all."""


def imported(path: Path) -> set[str]:
    """First-level parts of the library that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "kd_lightning":
                names = [f"kd_lightning.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name.split(".")[0] in ("kd_lightning", "callbacks")}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_run_one_way(path):
    for name in imported(path):
        assert name.split(".")[0] != "callbacks", f"{path.name} imports the application"
        part, target = part_of(path), [*name.split("."), ""][1]
        if part in BELOW and target not in ("", "__version__", part):
            assert target in BELOW[part], f"{path.name} imports {name}"


def test_callbacks_have_names_of_their_own():
    ours = {n for n, c in vars(callbacks).items() if inspect.isclass(c)}
    theirs = {n for n, c in vars(lightning.pytorch.callbacks).items() if inspect.isclass(c)}
    assert ours and not {n for n in ours & theirs if n != "Callback"}


def test_the_module_with_the_step_stays_short():
    assert len((PACKAGE / "distiller.py").read_text().splitlines()) < 300
