"""Answers that judge: a number, one of several options, a ranking, ratings by aspect."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed, Parser, filled, number
from kd_lightning.elicit.parsers.text import one_of

_NUMBER = r"[-+]?\d+(?:\.\d+)?"


def _written(text: str) -> re.Match[str] | None:
    """A number that stands alone, perhaps as `4/5`."""
    return re.fullmatch(rf"({_NUMBER})(?: ?/ ?{_NUMBER})? ?\.?", text.strip().strip("*").strip())


def _lines(head: str, marker: str) -> list[str]:
    """What stands behind each earlier marker, up to the end of its line."""
    return [part.partition("\n")[0] for part in head.split(marker)[1:]]


def _before(head: str, marker: str) -> list[str]:
    """Numbers that stand alone behind earlier markers."""
    return [match[1] for line in _lines(head, marker) if (match := _written(line))]


@dataclass(frozen=True)
class Number(Parser):
    """A number behind a marker, within a range; with two different ones there is none."""

    low: float
    """The smallest allowed."""
    high: float
    """The greatest allowed."""
    marker: str = "Score:"
    """Announces it, at the answer's end. '': the answer is the number and nothing else."""
    field: str = "score"
    """The value that it becomes."""
    before: str = ""
    """The value that the text before the marker becomes; '': it is left out."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        head, found, tail = text.rpartition(self.marker) if self.marker else ("", "-", text)
        if not found:
            raise Malformed(f"no {self.marker}")
        match = _written(tail)
        if match is None:
            raise Malformed("no number" if not self.marker else f"no number after {self.marker}")
        value = number(match[1])
        if self.marker and any(number(m) != value for m in _before(head, self.marker)):
            raise Malformed(f"two different numbers after {self.marker}")
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise Malformed(f"not between {self.low:g} and {self.high:g}")
        more = {self.before: filled(head, "the explanation")} if self.before else {}
        return [{**more, self.field: value}]


@dataclass(frozen=True)
class Choice(Parser):
    """One of several options, behind a marker."""

    options: tuple[str, ...]
    """What may be chosen, in any case."""
    marker: str = ""
    """Announces it, at the answer's end. '': the answer is the option and nothing else."""
    field: str = "verdict"
    """The value that it becomes."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        head, found, tail = text.rpartition(self.marker) if self.marker else ("", "-", text)
        if not found:
            raise Malformed(f"no {self.marker}")
        chosen = one_of(tail, tuple(self.options), self.marker or "the answer")
        for line in _lines(head, self.marker) if self.marker else ():
            try:
                before = one_of(line, tuple(self.options), self.marker)
            except Malformed:
                continue  # it speaks of the choice, and makes none
            if before != chosen:
                raise Malformed(f"two different choices after {self.marker}")
        return [{self.field: chosen}]


@dataclass(frozen=True)
class Ranking(Parser):
    """Labels from best to worst: `B > A > C`, each once."""

    marker: str = "Ranking:"
    """Announces it; the last occurrence counts. '': the answer is the ranking."""
    field: str = "ranking"
    """The value that the list of labels becomes."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        _, found, tail = text.rpartition(self.marker) if self.marker else ("", "-", text)
        if not found:
            raise Malformed(f"no {self.marker}")
        labels = [label.strip().strip("[]*.") for label in tail.strip().split(">")]
        if len(labels) < 2 or not all(re.fullmatch(r"\w{1,8}", label) for label in labels):
            raise Malformed("no ranking")
        if len(set(labels)) < len(labels):
            raise Malformed("a label twice in the ranking")
        return [{self.field: labels}]


@dataclass(frozen=True)
class Ratings(Parser):
    """A line `aspect: number` for each aspect; other lines are left out."""

    low: float = 1
    """The smallest allowed."""
    high: float = 5
    """The greatest allowed."""
    field: str = "ratings"
    """The value that aspect to number becomes."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        lines = re.findall(rf"^[ \t*-]*(\w[\w ]*?)\**:\**[ \t]*({_NUMBER})\**[ \t]*$", text, re.M)
        if not lines:
            raise Malformed("no ratings")
        found: dict[str, int | float] = {}
        for aspect, written in lines:
            name = aspect.strip().casefold()
            if name in found:
                raise Malformed("an aspect rated twice")
            found[name] = number(written)
            if not self.low <= found[name] <= self.high:
                raise Malformed(f"not between {self.low:g} and {self.high:g}")
        return [{self.field: found}]
