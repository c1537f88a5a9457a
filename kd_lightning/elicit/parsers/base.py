"""The interface of every parser: the text of an answer to the values of one or several records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Malformed(Exception):  # noqa: N818 (a state of an answer, not a mistake of ours)
    """An answer that is not in the form asked for; the text says why, alike for all such answers.

    It is caught where the question was put: asked again, then counted among the dropped.
    """


class Parser(ABC):
    """Reads one answer.

    Strict: what is not in the form that the template asks for is refused, not repaired.
    """

    @abstractmethod
    def parse(self, text: str) -> list[dict[str, Any]]:
        """One or several items of named values that JSON can hold; `Malformed` where it is none."""


def filled(text: str, what: str) -> str:
    """The text without white space around it; refused where nothing is left."""
    found = text.strip()
    if not found:
        raise Malformed(f"{what} is empty")
    return found


def number(written: str) -> int | float:
    """A number as it stands: 4 and 4.0 are the same, 4.5 is not cut."""
    value = float(written)
    return int(value) if value.is_integer() else value
