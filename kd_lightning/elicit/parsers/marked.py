"""Answers with marks in them: headed sections, tags, the turns of a transcript."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed, Parser, filled


@dataclass(frozen=True)
class Sections(Parser):
    """Parts under headings, each heading once, at the beginning of a line, in this order."""

    headings: Mapping[str, str]
    """Value to the heading that it stands under."""
    end: str = ""
    """A mark that ends the last section; '': the end of the text."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        places: list[tuple[int, int]] = []
        for heading in self.headings.values():
            marks = list(re.finditer(rf"^[ \t]*{re.escape(heading)}", text, re.MULTILINE))
            if len(marks) != 1:
                raise Malformed(f"{heading} {'more than once' if marks else 'missing'}")
            if places and marks[0].start() < places[-1][1]:
                raise Malformed(f"{heading} not in its place")
            places.append((marks[0].start(), marks[0].end()))
        stop = len(text)
        if self.end:
            stop = text.find(self.end, places[-1][1])
            if stop < 0:
                raise Malformed(f"{self.end} missing")
        ends = [*(start for start, _ in places[1:]), stop]
        parts = [text[begin:end] for (_, begin), end in zip(places, ends, strict=True)]
        pairs = zip(self.headings.items(), parts, strict=True)
        return [{name: filled(part, heading) for (name, heading), part in pairs}]


@dataclass(frozen=True)
class Tagged(Parser):
    """Parts between <tag> and </tag>; text outside is left out."""

    tags: Mapping[str, str]
    """Value to the tag that encloses it."""
    many: bool = False
    """Several items: the tags stand again for each, in the same order."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        columns: dict[str, list[str]] = {}
        for name, tag in self.tags.items():
            inner = _between(text, tag)
            if len(inner) > 1 and not self.many:
                raise Malformed(f"<{tag}> more than once")
            columns[name] = [filled(part, f"<{tag}>") for part in inner]
        counts = {len(column) for column in columns.values()}
        if len(counts) > 1:
            raise Malformed("tags not in equal number")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _between(text: str, tag: str) -> list[str]:
    """What stands between each <tag> and its </tag>."""
    before, *pieces = text.split(f"<{tag}>")
    if not pieces:
        raise Malformed(f"<{tag}> missing")
    if f"</{tag}>" in before or any(piece.count(f"</{tag}>") != 1 for piece in pieces):
        raise Malformed(f"<{tag}> not closed")
    return [piece.partition(f"</{tag}>")[0] for piece in pieces]


def _roles() -> dict[str, str]:
    return {"user": "[Human]", "assistant": "[AI]"}


@dataclass(frozen=True)
class Transcript(Parser):
    """A conversation in one text, each turn behind the mark of who speaks; turns alternate."""

    marks: Mapping[str, str] = field(default_factory=_roles)
    """Role to its mark, at the beginning of a line; the first role speaks first."""
    value: str = "messages"
    """The value that the turns become."""
    fewest: int = 2
    """Fewest turns."""
    whole: bool = True
    """Refuse a transcript whose last turn is not the last role's; False: that turn is left out."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        names = "|".join(re.escape(mark) for mark in self.marks.values())
        found = list(re.finditer(rf"^[ \t]*({names}):?", text, re.MULTILINE))
        if not found or text[: found[0].start()].strip():
            raise Malformed("text before the first turn" if found else "no turns")
        roles = {mark: role for role, mark in self.marks.items()}
        order, turns = list(self.marks), []
        ends = [*(mark.start() for mark in found[1:]), len(text)]
        for i, (mark, end) in enumerate(zip(found, ends, strict=True)):
            role = roles[mark[1]]
            if role != order[i % len(order)]:
                raise Malformed("turns do not alternate")
            turns.append({"role": role, "content": filled(text[mark.end() : end], "a turn")})
        if turns[-1]["role"] != order[-1]:
            if self.whole:
                raise Malformed("the last turn is not the answer")
            turns.pop()
        if len(turns) < self.fewest:
            raise Malformed(f"fewer than {self.fewest} turns")
        return [{self.value: turns}]
