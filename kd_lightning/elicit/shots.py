"""Demonstrations that a prompt shows: from a file, or from the records themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd_lightning.data.files import read_file
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import digest

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Shots:
    """Which records are shown as solved; the template says how (`=== shot user ===`)."""

    count: int
    """How many."""
    path: str = ""
    """A file of rows (jsonl, json, csv, parquet); '': the records of the step, without the one
    that is asked about."""
    select: Literal["drawn", "first", "similar"] = "drawn"
    """Drawn anew for each record, always the first, or those with most words shared (Jaccard)."""
    field: str = "prompt"
    """similar: the value whose words are compared."""

    def settings(self) -> dict[str, Any]:
        """What answers depend on, the file's content among it."""
        own = {"class": "Shots", "count": self.count, "select": self.select, "field": self.field}
        return {**own, "rows": digest([dict(row) for row in self._file()]) if self.path else ""}

    def _file(self) -> list[Mapping[str, Any]]:
        return [row for row, _ in read_file(Path(self.path).expanduser())] if self.path else []

    def pool(self, records: Sequence[Record]) -> list[tuple[str, Mapping[str, Any]]]:
        """What is chosen from: id ('' for the file's rows) and values."""
        found = (
            [("", row) for row in self._file()]
            if self.path
            else [(record.id, record.values) for record in records]
        )
        if len(found) < self.count + (0 if self.path else 1):
            raise KDError(
                f"shots: {self.count} demonstrations are wanted and there are "
                f"{len(found)} rows: lower shots.count or give more rows"
            )
        return found

    def choose(
        self, record: Record, found: list[tuple[str, Mapping[str, Any]]], rng: random.Random
    ) -> list[dict[str, Any]]:
        """Those for one record; the most similar stands last, next to the question."""
        others = [dict(values) for id, values in found if id != record.id or self.path]
        if self.select == "drawn":
            return rng.sample(others, self.count)
        if self.select == "first":
            return others[: self.count]
        words = _words(record.text(self.field))
        ranked = sorted(
            others, key=lambda row: -_shared(words, _words(str(row.get(self.field, ""))))
        )
        return ranked[: self.count][::-1]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _shared(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))
