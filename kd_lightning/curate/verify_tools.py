"""Answers that must call tools as these allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.curate.check import Check, Item, Judged, Mode
from kd_lightning.curate.json_schema import check_schema, faults
from kd_lightning.curate.verify_json import json_of, loaded
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work


class ToolCall(Check):
    """Keep answers that call known tools with arguments that these take.

    A call is an object with `name` and `arguments` (an object, or JSON text of one), by itself or
    as `function`; several stand in a list. A tool is an object with `name` and `parameters` (a JSON
    schema), by itself or as `function`.
    """

    def __init__(
        self,
        tools: list[dict[str, Any]] | None = None,
        field: str = "answer",
        tools_field: str = "tools",
        expected: str | None = None,
        mode: Mode = "filter",
        into: str = "scores",
        detail: str = "errors",
    ) -> None:
        """Store the settings.

        Args:
            tools: The tools of all records; None: each record holds its own.
            field: The call, or a list of answers with one each.
            tools_field: Field of a record's own tools (read where `tools` is None).
            expected: Field with the right call; None: every valid call is right.
            mode: `filter`: wrong ones fall; `score`: 1 and 0 are written down, all go on.
            into: Field of the scores.
            detail: score: field of what is wrong.
        """
        if tools is not None:
            _specified(tools)
        self.tools = tools
        self.field = field
        self.tools_field = tools_field
        self.expected = expected
        self.mode = mode
        self.into = into
        self.detail = detail

    def lacks(self, record: Record) -> str:
        if self.tools is None and not record.get(self.tools_field):
            return f"no {self.tools_field}"
        if self.expected is not None and record.get(self.expected) is None:
            return f"no {self.expected}"
        try:
            self._known(record)
        except ValueError:
            return f"unusable {self.tools_field}"
        try:
            self._right(record)
        except ValueError:
            return f"unusable {self.expected}"
        return ""

    def _known(self, record: Record) -> dict[str, Any]:
        """Name to schema of each tool."""
        return _specified(loaded(record[self.tools_field]) if self.tools is None else self.tools)

    def _right(self, record: Record) -> list[tuple[str, Any]] | None:
        """The expected calls."""
        if self.expected is None:
            return None
        return [_call(value) for value in _several(loaded(record[self.expected]))]

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Judged:
        known, right = self._known(item.record), self._right(item.record)
        try:
            calls = [_call(value) for value in _several(json_of(item.text))]
        except ValueError as error:
            return Judged(0.0, "no tool call", str(error))
        for name, arguments in calls:
            if name not in known:
                return Judged(0.0, "unknown tool", f"there is no tool {name}")
            if wrong := list(faults(arguments, known[name], name)):
                return Judged(0.0, "wrong arguments", "; ".join(wrong))
        if right is not None and calls != right:
            return Judged(0.0, "not the expected call", "another call was expected")
        return Judged(1.0)


def _several(value: Any) -> list[Any]:
    found = value if isinstance(value, list) else [value]
    if not found:
        raise ValueError("there is no call")
    return found


def _call(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        value = value.get("function", value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("a call needs a name")
    arguments = value.get("arguments", {})
    return value["name"], json_of(arguments) if isinstance(arguments, str) else arguments


def _specified(tools: Any) -> dict[str, Any]:
    found = {}
    for tool in tools if isinstance(tools, list) else [tools]:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        parameters = inner.get("parameters", {}) if isinstance(inner, Mapping) else None
        if not isinstance(parameters, Mapping) or not isinstance(inner.get("name"), str):
            raise KDError(f"tools: a tool needs a name and parameters, not {tool!r}")
        schema = {"type": "object", **parameters}
        check_schema(schema, f"tools: {inner['name']}")
        found[inner["name"]] = schema
    return found
