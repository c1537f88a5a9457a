"""Fields renamed, kept, set, erased: from what was elicited to what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.curate.select import amount
from kd_lightning.curate.texts import number_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Rename(Step):
    """Give fields other names."""

    def __init__(self, names: dict[str, str]) -> None:
        """Store the settings.

        Args:
            names: Each field to its new name; a field of that name is replaced.
        """
        self.names = names

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            if missing := [name for name in self.names if record.get(name) is None]:
                work.drop(record, f"no {missing[0]}")
            else:
                gone: dict[str, Any] = dict.fromkeys(self.names)
                new = {after: record[before] for before, after in self.names.items()}
                made.append(record.changed(work.name, **{**gone, **new}))
        return made


class Copy(Step):
    """Write fields a second time under other names, before a step changes them."""

    def __init__(self, names: dict[str, str]) -> None:
        """Store the settings.

        Args:
            names: Each field to the name of its copy; a field of that name is replaced.
        """
        self.names = names

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            if missing := [name for name in self.names if record.get(name) is None]:
                work.drop(record, f"no {missing[0]}")
            else:
                new: dict[str, Any] = {to: record[name] for name, to in self.names.items()}
                made.append(record.changed(work.name, **new))
        return made


class Keep(Step):
    """Take all fields away but some."""

    def __init__(self, fields: list[str]) -> None:
        """Store the settings.

        Args:
            fields: Those that stay.
        """
        self.fields = fields

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            gone: dict[str, Any] = {n: None for n in record.values if n not in self.fields}
            made.append(record.changed(work.name, **gone))
        return made


class Set(Step):
    """Write the same value into every record; null takes a field away."""

    def __init__(self, values: dict[str, Any]) -> None:
        """Store the settings.

        Args:
            values: Each field to its value.
        """
        self.values = values

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        return [record.changed(work.name, **self.values) for record in records]


class Erase(Step):
    """Take the system prompt away that the teacher was given, or put another in its place.

    The student learns to act on its own as the teacher did when it was told how.

    Source: Mitra et al. 2023 (Orca 2), arXiv 2311.11045 (prompt erasure).
    """

    def __init__(self, replacement: str | None = None, keep_as: str | None = None) -> None:
        """Store the settings.

        Args:
            replacement: System prompt that all records get instead; None: none.
            keep_as: Field that what was erased is written to; None: nowhere.
        """
        if keep_as in ("system", "messages"):
            raise KDError(f"keep_as must be another field than {keep_as}: it is erased there")
        self.replacement = replacement
        self.keep_as = keep_as

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        return [self._one(record, work) for record in records]

    def _one(self, record: Record, work: Work) -> Record:
        values: dict[str, Any] = {"system": self.replacement}
        erased = record.text("system")
        turns = record.get("messages")
        if isinstance(turns, list):
            told = [turn for turn in turns if turn["role"] == "system"]
            new = [{"role": "system", "content": self.replacement}] if self.replacement else []
            values = {"messages": new + [turn for turn in turns if turn["role"] != "system"]}
            values["system"] = self.replacement if erased else None
            erased = erased or "\n".join(turn["content"] for turn in told)
        if self.keep_as is not None and erased:
            values[self.keep_as] = erased
        work.count("erased", bool(erased))
        return record.changed(work.name, **values)


class Relabel(Step):
    """Put the right answer in place of the generator's: of all records, or of the least sure.

    Source: the least sure share by hand, as in Wang et al. 2021, arXiv 2108.13487.
    """

    def __init__(
        self,
        gold: str = "reference",
        field: str = "answer",
        confidence: str | None = None,
        share: float = 1.0,
    ) -> None:
        """Store the settings.

        Args:
            gold: Field with the right answer.
            field: Field that it is written to.
            confidence: Field with a number; None: all records get the right answer.
            share: With it: which share, of the least confident (a missing number comes first).
        """
        if not 0 <= share <= 1:
            raise KDError(f"share must lie between 0 and 1, not {share:g}")
        self.gold = gold
        self.field = field
        self.confidence = confidence
        self.share = share

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        chosen = set(range(len(records)))
        if self.confidence is not None:
            sure = [number_of(record, self.confidence) for record in records]
            lowest = [float("-inf") if n is None else n for n in sure]
            order = sorted(chosen, key=lambda i: (lowest[i], i))
            chosen = set(order[: amount(None, self.share, len(records))])
        made = []
        for i, record in enumerate(records):
            if i not in chosen:
                made.append(record)
            elif record.get(self.gold) in (None, "", []):
                work.drop(record, f"no {self.gold}")
            else:
                work.count("relabelled")
                made.append(record.changed(work.name, **{self.field: record[self.gold]}))
        return made
