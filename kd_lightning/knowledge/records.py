"""What elicitors and curators hand on: named values with their descent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """Named values, as a line of a data file holds them, with where they come from.

    Usual names, which the data modules read too: `prompt`, `system`, `answer`, `messages` (turns of
    role and content), `reference`, `rationale`, `docs`, `tests`, `candidates` with `scores` and
    `sources` (one: unpaired, two: a pair `chosen`, `rejected`, more: a list), `ratings`,
    `critique`, `revision`, `verdict`, `errors`.
    """

    id: str
    """Unique within a set."""
    values: Mapping[str, Any]
    """What JSON can hold."""
    lineage: tuple[Mapping[str, Any], ...] = ()
    """For each step that made or changed it: `step`, `from` (ids), `by` (the generator)."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or `default` where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    def text(self, name: str) -> str:
        """A value as text; '' where it is missing."""
        value = self.get(name, "")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def changed(self, step: str, by: str = "", /, **values: Any) -> Record:
        """The same record with other values in some names; None takes a name away."""
        merged = {k: v for k, v in {**self.values, **values}.items() if v is not None}
        return Record(self.id, merged, (*self.lineage, origin(step, [self.id], by)))

    def child(self, step: str, suffix: str, by: str = "", /, **values: Any) -> Record:
        """A new record made of this one, with its values changed."""
        made = self.changed(step, by, **values)
        return Record(f"{self.id}/{suffix}", made.values, made.lineage)

    def as_row(self) -> dict[str, Any]:
        """As a line of a file."""
        return {"id": self.id, **self.values, "lineage": list(self.lineage)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], id: str = "") -> Record:
        """The way back; `id` for rows that have none."""
        values = {k: v for k, v in row.items() if k not in ("id", "lineage")}
        return cls(str(row.get("id", id)), values, tuple(row.get("lineage", ())))


def born(
    id: str, values: Mapping[str, Any], step: str, parents: Sequence[Record] = (), by: str = ""
) -> Record:
    """A record out of several others, or of none."""
    return Record(id, dict(values), (origin(step, [p.id for p in parents], by),))


def origin(step: str, parents: Sequence[str], by: str = "") -> dict[str, Any]:
    """An entry of a lineage."""
    return {"step": step, "from": list(parents), **({"by": by} if by else {})}


@dataclass
class Tally:
    """What a step did, for the card."""

    taken: int = 0
    """Records that came in."""
    given: int = 0
    """Records that went out."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason to number of records that fell."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further numbers."""
