"""Answers in JSON: an object, a list of the errors in a text, a call of a tool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed, Parser

STARTS = 64
"""Braces at which an object is looked for; more would make a hostile answer slow."""


@dataclass(frozen=True)
class JSONObject(Parser):
    """The first whole JSON object of the answer; text around it is left out."""

    required: tuple[str, ...] = ()
    """Keys that must be there, with something in them."""
    only: bool = False
    """Whether other keys are malformed (False: they become values too)."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        found = first_json(text, "{")
        for key in self.required:
            if found.get(key) in (None, "", [], {}):
                raise Malformed(f"no {key} in the JSON object")
        if self.only and set(found) - set(self.required):
            raise Malformed("unknown keys in the JSON object")
        return [found]


@dataclass(frozen=True)
class Spans(Parser):
    """A JSON list of errors, each with the words that are wrong; `[]`: there are none."""

    required: tuple[str, ...] = ("span", "kind", "severity", "explanation")
    """Keys that each error has."""
    severities: tuple[str, ...] = ("minor", "major")
    """What `severity` may be; (): anything."""
    field: str = "errors"
    """The value that the list becomes."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        found = first_json(text, "[")
        for error in found:
            if not isinstance(error, dict):
                raise Malformed("an error is no object")
            for key in self.required:
                if not isinstance(error.get(key), str) or not error[key].strip():
                    raise Malformed(f"an error without {key}")
            if self.severities and error.get("severity") not in self.severities:
                raise Malformed(f"severity is none of {', '.join(self.severities)}")
        return [{self.field: found}]


def first_json(text: str, opening: str) -> Any:
    """The first value that opens with `opening` and can be read; nothing is run."""
    reader = json.JSONDecoder(parse_constant=_refused)
    start = -1
    for _ in range(STARTS):
        start = text.find(opening, start + 1)
        if start < 0:
            break
        try:
            return reader.raw_decode(text, start)[0]
        except (json.JSONDecodeError, RecursionError):
            continue
    raise Malformed(f"no JSON {'object' if opening == '{' else 'list'}")


def _refused(name: str) -> None:
    raise Malformed(f"{name} in the JSON")


@dataclass(frozen=True)
class Call(Parser):
    """A tool call in a tag, `{"name": ..., "arguments": {...}}`, or else a plain answer.

    What stands before the tag is kept as `answer`. The closing tag may be missing (it is a good
    text to stop at); behind it nothing may stand.
    """

    tag: str = "call"
    """The tag that encloses a call."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        before, opened, rest = text.partition(f"<{self.tag}>")
        if not opened:
            if not before.strip():
                raise Malformed("the answer is empty")
            return [{"answer": before.strip()}]
        told, _, after = rest.partition(f"</{self.tag}>")
        if after.strip():
            raise Malformed("text behind the call")
        try:
            call = json.loads(told, parse_constant=_refused)
        except (json.JSONDecodeError, RecursionError):
            raise Malformed("the call is no JSON") from None
        good = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
        if not good or not isinstance(call.get("name"), str) or set(call) != {"name", "arguments"}:
            raise Malformed("the call has not name and arguments alone")
        return [{"answer": before, "call": call}]
