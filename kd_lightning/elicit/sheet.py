"""A template's text, taken apart: settings at its head, turns below."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kd_lightning.errors import KDError

KEYS = ("describes", "parser", "stop", "system")
"""What the head may name."""

_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_TURN = re.compile(
    r"^=== (?:(?P<shot>shot )?(?P<role>system|user|assistant|plain)|turns (?P<turns>\w+)) ===$",
    re.MULTILINE,
)
_ANY = re.compile(r"^[ \t]*===.*===[ \t]*$", re.MULTILINE)
_FOREIGN: tuple[type[jinja2.nodes.Node], ...] = (
    jinja2.nodes.Include,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
    jinja2.nodes.Extends,
)


@dataclass(frozen=True)
class Part:
    """One turn of the file."""

    role: str
    """`turns`: those of a value."""
    text: jinja2.Template | None
    """What is rendered; None: the turns of a value."""
    of: str = ""
    """turns: the value."""
    shot: bool = False
    """Whether it is written again for each demonstration."""


@dataclass(frozen=True)
class Sheet:
    """A template's settings and turns. It is divided as it stands, before anything is rendered."""

    settings: dict[str, Any]
    """The head."""
    parts: tuple[Part, ...]
    """The turns."""

    @classmethod
    def read(cls, name: str, source: str) -> Sheet:
        """Take a text apart; `name` stands in errors."""
        found = _FRONT.match(source)
        settings = _settings(name, found[1] if found else "")
        parts = _parts(name, source[found.end() :] if found else source)
        if "system" in settings:
            parts.insert(0, Part("system", _compiled(name, str(settings["system"]))))
        if len(parts) > 1 and any(part.role == "plain" for part in parts):
            raise KDError(f"template {name}: === plain === stands alone, without other turns")
        return cls(settings, tuple(parts))


def _settings(name: str, head: str) -> dict[str, Any]:
    try:
        told = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        raise KDError(f"template {name}: its head is no YAML: {error}") from None
    if not isinstance(told, dict) or set(told) - set(KEYS):
        raise KDError(f"template {name}: its head may name {', '.join(KEYS)} and nothing else")
    return told


def _parts(name: str, body: str) -> list[Part]:
    for line in _ANY.findall(body):
        if not _TURN.fullmatch(line):
            raise KDError(
                f"template {name}: {line.strip()!r} is no turn: write === user ===, "
                "=== shot user ===, === turns NAME === or the like"
            )
    marks = list(_TURN.finditer(body))
    if not marks:
        return [Part("user", _compiled(name, body))]
    if body[: marks[0].start()].strip():
        raise KDError(f"template {name}: there is text before its first turn: move it into one")
    parts = []
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    for mark, end in zip(marks, ends, strict=True):
        text = body[mark.end() : end]
        if mark["turns"] and text.strip():
            raise KDError(f"template {name}: the text under {mark[0]!r} is nobody's: move it")
        made = None if mark["turns"] else _compiled(name, text)
        parts.append(Part(mark["role"] or "turns", made, mark["turns"] or "", bool(mark["shot"])))
    return parts


def _compiled(name: str, text: str) -> jinja2.Template:
    room = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        tree = room.parse(text.strip("\n"))
        if any(tree.find(kind) is not None for kind in _FOREIGN):
            raise KDError(f"template {name} takes in another file: write it out instead")
        return room.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise KDError(
            f"template {name}: {error.message} (each turn is a template of its own)"
        ) from None
