"""Answers in running text: the whole of it, a list of lines, an answer behind its reasoning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed, Parser, filled

_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s+")
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+", re.MULTILINE)


@dataclass(frozen=True)
class Text(Parser):
    """The whole answer."""

    field: str = "answer"
    """The value it becomes."""
    shortest: int = 1
    """Fewest characters."""
    refuse: tuple[str, ...] = ()
    """An answer that begins with one of these texts is malformed (a word for "impossible")."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        found = filled(text, "the answer")
        if len(found) < self.shortest:
            raise Malformed(f"shorter than {self.shortest} characters")
        for word in self.refuse:
            if found.startswith(word):
                raise Malformed(f"says {word}")
        return [{self.field: found}]


@dataclass(frozen=True)
class Lines(Parser):
    """One item in each line; bullets and numbers before it are left out."""

    field: str = "prompt"
    """The value that each becomes."""
    fewest: int = 1
    """Fewest lines."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        lines = [_BULLET.sub("", line).strip() for line in text.splitlines()]
        found = [{self.field: line} for line in lines if line]
        if len(found) < self.fewest:
            raise Malformed(f"fewer than {self.fewest} lines")
        return found


@dataclass(frozen=True)
class Numbered(Parser):
    """Items behind 1., 2., 3. at the beginning of a line; an item may have several lines.

    The numbers have to rise by one. What stands before the first is left out.
    """

    field: str = "prompt"
    """The value that each becomes."""
    start: int = 1
    """The first number (another one where the prompt itself lists the first items)."""
    fewest: int = 1
    """Fewest items."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        marks: list[re.Match[str]] = []
        for mark in _NUMBERED.finditer(text):
            if int(mark[1]) == self.start + len(marks):
                marks.append(mark)  # others belong to an item: lists inside it begin anew
        ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
        items = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
        found = [{self.field: item} for item in items if item]
        if len(found) < self.fewest or len(found) < len(items):
            raise Malformed(f"fewer than {max(self.fewest, len(items))} numbered items")
        return found


@dataclass(frozen=True)
class Final(Parser):
    """What stands behind a marker, and everything before it: an answer with its reasoning."""

    marker: str = "Answer:"
    """Announces the answer; its last occurrence at the beginning of a line counts."""
    answer: str = "answer"
    """The value that stands behind it."""
    before: str = "rationale"
    """The value that everything before it becomes."""
    options: tuple[str, ...] = ()
    """What the answer may be, in any case; (): anything."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        bold = rf"^[ \t]*(\*\*)?{re.escape(self.marker)}(\*\*)?"
        marks = list(re.finditer(bold, text, re.MULTILINE))
        if not marks:
            raise Malformed(f"no {self.marker}")
        told = text[marks[-1].end() :].strip()
        if marks[-1][1] and not marks[-1][2]:
            told = told.removesuffix("**")
        answer = filled(told, f"what follows {self.marker}")
        before = filled(text[: marks[-1].start()], f"what precedes {self.marker}")
        if self.options:
            answer = one_of(answer, self.options, self.marker)
        return [{self.before: before, self.answer: answer}]


def one_of(answer: str, options: tuple[str, ...], where: str) -> str:
    """The option that an answer is, whatever its case and a full stop behind it."""
    plain = answer.strip().rstrip(".!").strip("*`\"'").casefold()
    for option in options:
        if plain == option.casefold():
            return option
    raise Malformed(f"{where} is none of {', '.join(options)}")
