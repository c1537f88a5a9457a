"""Answers that rate several texts: a number, or N/A, for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed, Parser, number


@dataclass(frozen=True)
class Marks(Parser):
    """A line `Text 2: 4` for each text, in order; `N/A` where a rating does not apply.

    Other lines (reasons) are left out.
    """

    low: float = 1
    """The smallest allowed."""
    high: float = 5
    """The greatest allowed."""
    label: str = "Text"
    """The word before each text's number."""
    field: str = "marks"
    """The value that the list becomes; None stands for N/A."""

    def parse(self, text: str) -> list[dict[str, Any]]:
        lines = re.findall(
            rf"^[ \t*-]*{re.escape(self.label)} (\d+)\**:\**[ \t]*(\S+?)\**[ \t]*$", text, re.M
        )
        if not lines:
            raise Malformed("no ratings")
        if [int(place) for place, _ in lines] != list(range(1, len(lines) + 1)):
            raise Malformed("texts not rated once each, in order")
        return [{self.field: [self._mark(written) for _, written in lines]}]

    def _mark(self, written: str) -> int | float | None:
        if written.casefold() in ("n/a", "na"):
            return None
        if not re.fullmatch(r"\d+(\.\d+)?", written):
            raise Malformed("a rating is no number")
        value = number(written)
        if not self.low <= value <= self.high:
            raise Malformed(f"not between {self.low:g} and {self.high:g}")
        return value
