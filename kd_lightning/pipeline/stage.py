"""One stage: a command of the command line, with what it reads of other stages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_lightning.errors import KDError
from kd_lightning.files import digest_of
from kd_lightning.knowledge.step import digest

FOLDER = {
    "elicit": "output",
    "fit": "trainer.default_root_dir",
    "evaluate": "output",
    "export": "output",
    "cache": "output",
}
"""Commands that may be stages, each with the option that names its folder."""

SEED = {"elicit": "seed", "fit": "seed_everything"}
"""The option that takes the pipeline's seed, where a command has one."""

_REFERENCE = re.compile(r"\{(previous\.)?(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """A command, its configurations, and what it is told beyond them."""

    name: str
    """How other stages refer to its folder: `{name}`, or `{previous.name}` of the round before."""
    command: Literal["elicit", "fit", "evaluate", "export", "cache"]
    """What is run."""
    configs: list[str]
    """Configuration files; later ones win."""
    set: dict[str, Any] = field(default_factory=dict)
    """Options by their names, as on the command line; `{name}`, `{previous.name}`, `{round}` and
    `{seed}` are filled in."""
    first: dict[str, Any] = field(default_factory=dict)
    """Options that hold in the first round in place of those of the same name in `set`; null:
    leave the option out then."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in ("round", "seed"):
            raise KDError(
                f"{self.name!r} cannot name a stage: write small letters, digits and underscores, "
                "and neither round nor seed"
            )

    def options(self, number: int) -> dict[str, Any]:
        """What holds in a round (from 1), not filled in."""
        merged = {**self.set, **(self.first if number == 1 else {})}
        return {k: v for k, v in merged.items() if not (k in self.first and v is None)}

    def references(self, number: int) -> list[tuple[bool, str]]:
        """Stages whose folders it reads in a round: (of the round before, name)."""
        text = json.dumps(self.options(number))
        found = dict.fromkeys((bool(p), name) for p, name in _REFERENCE.findall(text))
        return [(p, name) for p, name in found if p or name not in ("round", "seed")]

    def arguments(
        self, number: int, seed: int, folder: Path, folders: Mapping[tuple[bool, str], Path]
    ) -> list[str]:
        """The command line of a round, without the program."""

        def filled(match: re.Match[str]) -> str:
            if not match[1] and match[2] in ("round", "seed"):
                return str(number if match[2] == "round" else seed)
            return str(folders[bool(match[1]), match[2]])

        options = {FOLDER[self.command]: str(folder)}
        if self.command in SEED:
            options[SEED[self.command]] = str(seed)
        for key, value in self.options(number).items():
            text = value if isinstance(value, str) else json.dumps(value)
            options[key] = _REFERENCE.sub(filled, text)
        files = [part for path in self.configs for part in ("-c", path)]
        return [self.command, *files, *(f"--{k}={v}" for k, v in options.items())]


def fingerprint(arguments: list[str], folder: Path, inputs: Mapping[str, str]) -> str:
    """A name that only a stage with the same command, files and inputs has."""
    told = [a.replace(str(folder.parent.parent), "") for a in arguments]
    files: dict[str, str] = {}
    for argument in arguments:
        _collect(argument.partition("=")[2] or argument, Path(), files)
    return digest([told, files, dict(inputs)])


def _collect(text: str, beside: Path, found: dict[str, str]) -> None:
    """Digests of a file and, of a configuration, of the files that it names."""
    if len(text) > 255 or "\n" in text:
        return
    for place in (beside / text, Path(text)):
        if place.is_file():
            name = str(place)
            if name not in found:
                found[name] = digest_of(place)
                if place.suffix in (".yaml", ".yml"):
                    for value in _texts(yaml.safe_load(place.read_text(encoding="utf-8"))):
                        _collect(value, place.parent, found)
            return


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for v in value.values() for text in _texts(v)]
    if isinstance(value, list):
        return [text for v in value for text in _texts(v)]
    return [value] if isinstance(value, str) else []
