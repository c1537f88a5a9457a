"""Answers that must be JSON as a schema says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from kd_lightning.curate.check import Check, Item, Judged, Mode
from kd_lightning.curate.json_schema import check_schema, faults
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work

_FENCED = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def json_of(text: str) -> Any:
    """The JSON value that a text is, or that its fenced block holds; ValueError where there is
    none.
    """
    fenced = _FENCED.search(text)
    try:
        return json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class JSONSchema(Check):
    """Keep answers that are JSON as a schema says."""

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        field: str = "answer",
        schema_field: str = "schema",
        mode: Mode = "filter",
        into: str = "scores",
        detail: str = "errors",
    ) -> None:
        """Store the settings.

        Args:
            schema: The schema of all answers; None: each record holds its own.
            field: The answer, or a list of them.
            schema_field: Field of a record's own schema (read where `schema` is None).
            mode: `filter`: wrong ones fall; `score`: 1 and 0 are written down, all go on.
            into: Field of the scores.
            detail: score: field of what is wrong.
        """
        if schema is not None:
            check_schema(schema)
        self.schema = schema
        self.field = field
        self.schema_field = schema_field
        self.mode = mode
        self.into = into
        self.detail = detail

    def lacks(self, record: Record) -> str:
        if self.schema is not None:
            return ""
        if record.get(self.schema_field) is None:
            return f"no {self.schema_field}"
        try:
            check_schema(loaded(record[self.schema_field]))
        except ValueError:  # a model's own schema may be none: its record falls, not the run
            return f"unusable {self.schema_field}"
        return ""

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Judged:
        schema = self.schema
        if schema is None:
            schema = loaded(item.record[self.schema_field])
        try:
            value = json_of(item.text)
        except ValueError:
            return Judged(0.0, "no JSON", "the answer is no JSON")
        wrong = list(faults(value, schema, "answer"))
        return Judged(0.0, "not as the schema says", "; ".join(wrong)) if wrong else Judged(1.0)


def loaded(value: Any) -> Any:
    """Schemas and tools may stand in a record as JSON text."""
    return json.loads(value) if isinstance(value, str) else value
