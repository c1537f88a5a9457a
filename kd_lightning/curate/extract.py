"""What an answer comes down to: the part of it that is compared."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from decimal import Decimal, InvalidOperation

from kd_lightning.curate.part import Part
from kd_lightning.errors import KDError
from kd_lightning.metrics.answers import final_number


class Extract(Part, ABC):
    """Reads the final answer out of a text."""

    @abstractmethod
    def of(self, text: str) -> str | None:
        """The answer; None where there is none."""


class Number(Extract):
    """The number that a solution ends with: after ####, "answer is", in a box, else the last."""

    def of(self, text: str) -> str | None:
        found = final_number(text)
        return None if found is None else f"{found.normalize():f}"


class Boxed(Extract):
    r"""What stands in the last `\boxed{...}`, braces inside included."""

    def of(self, text: str) -> str | None:
        start = text.rfind("\\boxed{")
        if start < 0:
            return None
        begin, depth = start + len("\\boxed{"), 1
        for i in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if not depth:
                return text[begin:i].strip()
        return None


class After(Extract):
    """What stands after the last of a marker, up to the end of the line."""

    def __init__(self, marker: str = "Answer:", to_end: bool = False) -> None:
        """Store the settings.

        Args:
            marker: The marker, in any case.
            to_end: Up to the end of the text instead.
        """
        if not marker:
            raise KDError("marker must not be empty: write what stands before the answer")
        self.marker = marker
        self.to_end = to_end

    def of(self, text: str) -> str | None:
        found = list(re.finditer(re.escape(self.marker), text, re.IGNORECASE))
        if not found:
            return None
        rest = text[found[-1].end() :].strip()
        return (rest if self.to_end else rest.partition("\n")[0].strip()) or None


class Found(Extract):
    """What a regular expression finds last; its first group, where it has one."""

    def __init__(self, pattern: str = r"\(([A-E])\)", ignore_case: bool = False) -> None:
        """Store the settings.

        Args:
            pattern: The regular expression (of Python).
            ignore_case: Whether upper and lower case are the same.
        """
        try:
            re.compile(pattern)
        except re.error as error:
            raise KDError(f"{pattern!r} is no regular expression ({error}): correct it") from None
        self.pattern = pattern
        self.ignore_case = ignore_case

    def of(self, text: str) -> str | None:
        found = list(re.finditer(self.pattern, text, re.IGNORECASE if self.ignore_case else 0))
        if not found:
            return None
        last = found[-1]
        told: str | None = last.group(1 if last.re.groups else 0)
        return told.strip() if told is not None else None


class Whole(Extract):
    """The whole text."""

    def of(self, text: str) -> str | None:
        return text.strip() or None


def settled(answer: str) -> str:
    """An answer as it is compared: numbers in one way, else words in lower case."""
    number = as_decimal(answer)
    if number is not None:
        return f"{number.normalize():f}"
    return " ".join(answer.lower().split()).strip(" .")


def same(a: str, b: str, tolerance: float = 0.0) -> bool:
    """Whether two extracted answers are one; numbers may differ by a share of the larger."""
    x, y = as_decimal(a), as_decimal(b)
    if x is None or y is None:
        return settled(a) == settled(b)
    return abs(x - y) <= Decimal(str(tolerance)) * max(abs(x), abs(y))


def as_decimal(text: str) -> Decimal | None:
    """A text that is a number and nothing else, with separators or a currency sign."""
    plain = re.sub(r"(?<=\d),(?=\d{3})|^\s*[$€£]\s*|\s*%?\s*\.?\s*$", "", text).strip()
    try:
        found = Decimal(plain)
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
