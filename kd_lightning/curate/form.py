"""Rules about what a record must have and how it is built; rules made of rules."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from kd_lightning.curate.filter import Filter
from kd_lightning.curate.texts import text_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class Rules(Filter):
    """Several rules as one: a record falls for the first that it breaks, or if it breaks all."""

    def __init__(self, rules: list[Filter], falls: Literal["any", "all"] = "any") -> None:
        """Store the settings.

        Args:
            rules: The rules.
            falls: `any`: one broken rule is enough; `all`: only a record that breaks every one
                falls (an apology *and* a short answer).
        """
        if not rules:
            raise KDError("Rules needs at least one rule: write it to `rules`")
        self.rules = rules
        self.falls = falls

    def fault(self, record: Record) -> str:
        reasons = []
        for rule in self.rules:
            reason = rule.fault(record)
            if reason and self.falls == "any":
                return reason
            if not reason and self.falls == "all":
                return ""
            reasons.append(reason)
        return "" if self.falls == "any" else " and ".join(reasons)


class Alternates(Filter):
    """Keep conversations whose roles take turns and that end with an answer."""

    def __init__(
        self, field: str = "messages", min_turns: int = 2, max_turns: int | None = None
    ) -> None:
        """Store the settings.

        Args:
            field: The turns: role and content.
            min_turns: Fewest turns of user and assistant together.
            max_turns: Most of them; None: any number.
        """
        self.field = field
        self.min_turns = min_turns
        self.max_turns = max_turns

    def fault(self, record: Record) -> str:
        turns: Sequence[Any] = record.get(self.field, [])
        if not turns:
            return f"no {self.field}"
        if any(not isinstance(t, dict) or not {"role", "content"} <= t.keys() for t in turns):
            return "turn without role or content"
        if any(not str(t["content"] or "").strip() for t in turns if "tool_calls" not in t):
            return "empty turn"
        roles = [t["role"] for t in turns]
        if odd := sorted({str(r) for r in roles} - {"system", "user", "assistant", "tool"}):
            return f"unknown role {odd[0]}"
        if "system" in roles[1:]:
            return "system turn amid the conversation"
        return self._order([role for role in roles if role != "system"])

    def _order(self, roles: Sequence[str]) -> str:
        """A user's turn, then an assistant's; between a tool's turns the assistant goes on."""
        after = {"": {"user"}, "user": {"assistant"}, "assistant": {"user", "tool"}}
        after["tool"] = {"assistant", "tool"}
        before = ""
        for role in roles:
            if role not in after[before]:
                return "roles do not take turns"
            before = role
        if before != "assistant":
            return "last turn is no answer"
        spoken = sum(role != "tool" for role in roles)
        if spoken < self.min_turns:
            return "too few turns"
        return "too many turns" if self.max_turns is not None and spoken > self.max_turns else ""


class SameNumbers(Filter):
    """Drop a text that holds a number which the other does not: it was made up.

    Source: Jung et al. 2023 (Impossible Distillation), arXiv 2305.16635.
    """

    def __init__(self, field: str = "answer", of: str = "prompt", both: bool = False) -> None:
        """Store the settings.

        Args:
            field: The text that is looked at.
            of: The text that its numbers must come from.
            both: Whether each text must hold all numbers of the other.
        """
        self.field = field
        self.of = of
        self.both = both

    def fault(self, record: Record) -> str:
        told = _numbers(text_of(record, self.field))
        known = _numbers(text_of(record, self.of))
        if told - known:
            return f"a number of {self.field} is not in {self.of}"
        return f"a number of {self.of} is lost" if self.both and known - told else ""


def _numbers(text: str) -> set[str]:
    found = (number.replace(",", "") for number in _NUMBER.findall(text))
    return {n.rstrip("0").rstrip(".") if "." in n else n for n in found}


class Finished(Filter):
    """Drop answers that were cut: by the record's word for it, or by how the text ends."""

    def __init__(
        self,
        field: str = "answer",
        flag: str = "finished",
        endings: str = ".!?\"'`)]}>*|…。！？”’",
    ) -> None:
        """Store the settings.

        Args:
            field: The text.
            flag: Field that says whether the generator came to its end; what it says holds.
            endings: Without such a field: the characters that a whole text may end with, or a
                digit; '': any.
        """
        self.field = field
        self.flag = flag
        self.endings = endings

    def fault(self, record: Record) -> str:
        told = record.get(self.flag)
        if told is not None:
            return "" if told else f"{self.field} was cut"
        text = text_of(record, self.field).rstrip()
        if not text:
            return f"no {self.field}"
        whole = not self.endings or text[-1] in self.endings or text[-1].isdigit()
        return "" if whole else f"{self.field} ends amid a sentence"


class HasFields(Filter):
    """Drop records that lack a value, or hold an empty one."""

    def __init__(self, fields: list[str]) -> None:
        """Store the settings.

        Args:
            fields: Names of the values that every record needs.
        """
        self.fields = fields

    def fault(self, record: Record) -> str:
        missing = [n for n in self.fields if record.get(n) is None or record[n] in ("", [], {})]
        return f"no {missing[0]}" if missing else ""


class Parses(Filter):
    """Drop texts that are no JSON, or no Python."""

    def __init__(self, field: str = "answer", kind: Literal["json", "python"] = "json") -> None:
        """Store the settings.

        Args:
            field: The text.
            kind: What it has to be.
        """
        self.field = field
        self.kind = kind

    def fault(self, record: Record) -> str:
        text = text_of(record, self.field)
        try:
            json.loads(text) if self.kind == "json" else ast.parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return f"{self.field} is no {self.kind}"
        return ""
