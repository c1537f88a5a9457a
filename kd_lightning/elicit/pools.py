"""Texts that a step draws from: system prompts, principles, personas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd_lightning.elicit.template import FOLDER
from kd_lightning.errors import KDError

Pool = str | list[Any]
"""A list, the name of one of the library's pools, or the path of a .yaml file with a list."""


def pool(told: Pool) -> list[Any]:
    """The entries of a pool."""
    if isinstance(told, str):
        path = Path(told).expanduser() if told.endswith((".yaml", ".yml")) else _own(told)
        if not path.is_file():
            raise KDError(f"there is no pool {told}: write a list, or a .yaml file that holds one")
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise KDError(f"the pool {told} is no YAML: {error}") from None
    else:
        entries = told
    if not isinstance(entries, list) or not entries:
        raise KDError(f"the pool {told} is not a list with entries: write `- text` lines")
    return entries


def _own(name: str) -> Path:
    path = FOLDER / f"{name}.yaml"
    if not name.isidentifier() or not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise KDError(f"there is no pool {name!r}: write a list, a .yaml file or one of {known}")
    return path
