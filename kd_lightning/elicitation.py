"""`kd elicit`: a configuration of seeds, generators and steps, run into a knowledge set."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from kd_lightning import files
from kd_lightning.application import KDParser, load_plugins, quiet
from kd_lightning.errors import KDError
from kd_lightning.knowledge.engine import Elicitation
from kd_lightning.security.secrets import masked
from kd_lightning.tracking import MARKERS

RECORD = "config.yaml"
"""The whole resolved configuration, in the set's folder."""

OWN = {RECORD, "steps", "begun.json"}
"""One of these stands in a folder that an elicitation, or a pipeline for it, began."""

PACKAGES = ("curate", "elicit", "teachers", "data.skills", "data.verticals")
"""Whose class names a configuration may use."""


def load() -> None:
    """Let configurations use the class names of these packages and of the plug-ins."""
    for name in PACKAGES:
        importlib.import_module(f"kd_lightning.{name}")
    load_plugins()


def refuse_foreign(folder: Path) -> None:
    """Write only into a folder of our own, or an empty one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise KDError(f"{folder} is a file: write a folder to --output")
    if (folder / MARKERS[1]).exists():
        raise KDError(f"{folder} holds a training run: write another folder to --output")
    found = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if found and not OWN & set(found):
        raise KDError(
            f"{folder} holds other files ({', '.join(found[:3])}) and no set: write another folder "
            "to --output"
        )


def elicit(argv: Sequence[str]) -> Path:
    """Run a configuration; the folder of the set."""
    load()
    quiet()
    parser = KDParser.of(Elicitation, "kd elicit")
    config = parser.parse_args(list(argv))
    elicitation = Elicitation(**parser.made(config))
    elicitation.check()
    folder = Path(elicitation.output)
    refuse_foreign(folder)
    config.pop("config", None)
    folder.mkdir(parents=True, exist_ok=True)
    text = masked(parser.dump(config, skip_none=False, skip_validation=True))
    files.write(folder / RECORD, [text.encode()])
    return elicitation.run()
