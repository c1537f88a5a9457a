"""Several records as one with a list, and one with a list as several records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.curate.select import groups, placed
from kd_lightning.curate.texts import at_least
from kd_lightning.knowledge.records import Record, born
from kd_lightning.knowledge.step import Step, Work


class Groups(Step):
    """Several records of one question as one, with a list of candidates."""

    def __init__(
        self,
        by: str = "prompt",
        candidate: str = "answer",
        into: str = "candidates",
        along: dict[str, str] | None = None,
        least: int = 2,
        most: int | None = None,
    ) -> None:
        """Store the settings.

        Args:
            by: Field whose value they share; `root`: the record that they descend from.
            candidate: Field that becomes the list's entries.
            into: Name of the list.
            along: Further fields to the lists that they become (`score: scores`); None: score and
                source, where all have them.
            least: Fewest candidates.
            most: Candidates beyond so many are left out; None: none.
        """
        at_least("least", least, 1)
        self.by = by
        self.candidate = candidate
        self.into = into
        self.along = along
        self.least = least
        self.most = most

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having = []
        for record in placed(records, self.by, work):
            if record.get(self.candidate) in (None, ""):
                work.drop(record, f"no {self.candidate}")
            else:
                having.append(record)
        made = []
        for places in groups(having, self.by).values():
            members = [having[i] for i in places]
            if len(members) < self.least:
                for record in members:
                    work.drop(record, "group too small")
                continue
            for record in members[self.most :] if self.most is not None else ():
                work.drop(record, "group has enough")
            made.append(self._one(members[: self.most], work))
        return made

    def _one(self, members: Sequence[Record], work: Work) -> Record:
        along = {"score": "scores", "source": "sources"} if self.along is None else self.along
        gone = {self.candidate, *along}
        shared = {
            name: value
            for name, value in members[0].values.items()
            if name not in gone and all(m.get(name) == value for m in members)
        }
        lists: dict[str, Any] = {self.into: [m[self.candidate] for m in members]}
        for name, many in along.items():
            if all(m.get(name) is not None for m in members):
                lists[many] = [m[name] for m in members]
        work.count("records put together", len(members) - 1)
        return born(members[0].id, {**shared, **lists}, work.name, members)


class Flatten(Step):
    """Each candidate as a record of its own."""

    def __init__(
        self,
        field: str = "candidates",
        into: str = "answer",
        along: dict[str, str] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            field: The list.
            into: Field that an entry is written to.
            along: Further lists of the same length to the fields that their entries are written to
                (`scores: score`); None: scores and sources.
        """
        self.field = field
        self.into = into
        self.along = along

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        along = {"scores": "score", "sources": "source"} if self.along is None else self.along
        made = []
        for record in records:
            entries = record.get(self.field)
            if not isinstance(entries, list) or not entries:
                work.drop(record, f"no {self.field}")
                continue
            gone: dict[str, Any] = {self.field: None}
            lists = {}
            for many, one in along.items():
                value = record.get(many)
                if isinstance(value, list) and len(value) == len(entries):
                    lists[one], gone[many] = value, None
            for i, entry in enumerate(entries):
                values = {**gone, **{one: value[i] for one, value in lists.items()}}
                made.append(record.child(work.name, str(i), **{**values, self.into: entry}))
        return made
