"""What a generator is asked, as a file: settings, turns, and how the answer is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from kd_lightning.elicit import parsers
from kd_lightning.elicit.parsers.base import Parser
from kd_lightning.elicit.sheet import Part, Sheet
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import digest, plain
from kd_lightning.security.time_limit import TooSlowError, time_limit
from kd_lightning.types import Message, Prompt

FOLDER = Path(__file__).parent / "templates"
"""The templates that come with the library."""

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak in a conversation that a value holds."""

OURS = {"fence", "records", "shots"}
"""Names that steps give besides a record's values."""

SECONDS = 5.0
"""The longest that a template may work on one record."""


class Template:
    """A Jinja file with YAML settings at its head (`parser`, `system`, `stop`, `describes`).

    Lines `=== system ===`, `=== user ===`, `=== assistant ===` divide it into turns,
    `=== shot user ===` and `=== shot assistant ===` into turns of each demonstration,
    `=== turns NAME ===` puts in the conversation that stands in a value, and `=== plain ===` makes
    it a text to continue. Without any it is one user turn. The file is divided before it is
    rendered: no value can add a turn. It is rendered in Jinja's sandbox, reads no other file, and a
    name that the record does not have is an error.

    Besides the record's values there is `fence`: a line that nobody who wrote one of them could
    foresee, between which templates put what is to be judged and not obeyed.
    """

    def __init__(self, name: str) -> None:
        """Store the settings.

        Args:
            name: One of the library's templates (`rationale`), or the path of a .jinja file.
        """
        self.name = name

    @property
    def path(self) -> Path:
        """Where the file stands."""
        own = Path(self.name).expanduser()
        if self.name.endswith(".jinja"):
            if not own.is_file():
                raise KDError(f"there is no template {own}: write the path of a .jinja file")
            return own
        found = FOLDER / f"{self.name}.jinja"
        if not re.fullmatch(r"\w+", self.name) or not found.is_file():
            known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.jinja")))
            raise KDError(f"there is no template {self.name!r}: write a .jinja path or {known}")
        return found

    @cached_property
    def source(self) -> str:
        """The file's text."""
        return self.path.read_text(encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        """What stored answers depend on: the text, not the place. Refuses one that cannot work."""
        assert self._sheet.parts and self.parser  # both are read here, at set-up
        return {"template": self.name.rpartition("/")[2], "digest": digest(self.source)}

    @cached_property
    def parser(self) -> Parser:
        """Reads the answers."""
        told = self._sheet.settings.get("parser", "Text")
        name, arguments = (
            next(iter(told.items())) if isinstance(told, dict) and told else (told, {})
        )
        cls = getattr(parsers, str(name), None)
        if not (isinstance(cls, type) and issubclass(cls, Parser) and name in parsers.__all__):
            known = ", ".join(n for n in parsers.__all__ if n not in ("Malformed", "Parser"))
            raise KDError(
                f"template {self.name}: there is no parser {name!r}: write one of {known}"
            )
        try:
            made: Parser = cls(**{k: _fixed(v) for k, v in (arguments or {}).items()})
        except TypeError as error:
            raise KDError(f"template {self.name}: parser {name} cannot be made: {error}") from None
        return made

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts at which an answer ends."""
        told = self._sheet.settings.get("stop", [])
        return (told,) if isinstance(told, str) else tuple(map(str, told))

    def prompt(self, values: Mapping[str, Any], record: str) -> Prompt:
        """The question about a record's values; `record` is named in errors."""
        known = {name: value for name, value in values.items() if value is not None}
        if "fence" in self.source:
            known.setdefault("fence", f"#### {digest(plain(known))} ####")
        turns: list[Message] = []
        for role, text in self._turns(known, record):
            if turns and turns[-1].role == role and text.strip():
                turns[-1] = Message(role, f"{turns[-1].content}\n\n{text}")
            elif text.strip():
                turns.append(Message(role, text))
        if not turns or turns[-1].role in ("assistant", "system"):
            raise KDError(
                f"template {self.name}, record {record}: nothing is asked at its end: let the last "
                "turn be the user's"
            )
        if turns[0].role == "plain":
            return Prompt.text(turns[0].content)
        return Prompt(tuple(turns))

    @cached_property
    def _sheet(self) -> Sheet:
        return Sheet.read(self.name, self.source)

    def _turns(self, known: dict[str, Any], record: str) -> list[tuple[str, str]]:
        made: list[tuple[str, str]] = []
        i = 0
        while i < len(self._sheet.parts):
            part = self._sheet.parts[i]
            if part.shot:
                end = next((j for j, p in enumerate(self._sheet.parts[i:], i) if not p.shot), None)
                block = self._sheet.parts[i:end]
                for shot in known.get("shots", ()):
                    made += [(p.role, self._render(p, {**known, **shot}, record)) for p in block]
                i += len(block)
                continue
            if part.text is None:
                made += self._conversation(known.get(part.of), part.of, record)
            else:
                made.append((part.role, self._render(part, known, record)))
            i += 1
        return made

    def _conversation(self, turns: Any, name: str, record: str) -> list[tuple[str, str]]:
        good = isinstance(turns, list) and all(
            isinstance(t, Mapping) and isinstance(t.get("content"), str) and t.get("role") in ROLES
            for t in turns
        )
        if not good:
            raise KDError(
                f"template {self.name} needs {name}, a list of turns with role "
                f"({', '.join(ROLES)}) and content, and record {record} has none"
            )
        return [(str(turn["role"]), turn["content"]) for turn in turns]

    def _render(self, part: Part, known: Mapping[str, Any], record: str) -> str:
        assert part.text is not None
        try:
            with time_limit(SECONDS):
                text = part.text.render(known)
        except jinja2.UndefinedError as error:
            has = ", ".join(sorted(known.keys() - OURS)) or "no values"
            raise KDError(
                f"template {self.name}: {error.message} for record {record}, which has {has}: give "
                "the record that value, or name the value it has by the step's `reads`"
            ) from None
        except TooSlowError:
            raise KDError(
                f"template {self.name} works longer than {SECONDS:g} seconds on record {record}"
            ) from None
        except (
            jinja2.TemplateError,
            TypeError,
            KeyError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise KDError(f"template {self.name} cannot render record {record}: {error}") from None
        return text if part.role == "plain" else text.strip("\n")


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
