"""What a check says: a level and one sentence with what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from kd_lightning.errors import KDError

if TYPE_CHECKING:
    from kd_lightning.doctor.patient import Patient


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One sentence, and what belongs below it."""

    level: Level
    text: str
    shown: tuple[Any, ...] = ()
    """Tables and texts for the terminal (rich)."""


@dataclass
class Checked:
    """What one check found."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def level(self) -> Level:
        """The worst of its findings."""
        order = list(Level)
        return max((f.level for f in self.findings), key=order.index, default=Level.OK)


Check: TypeAlias = "Callable[[Patient], Iterator[Finding]]"
"""Looks at one thing; independent of the other checks."""


class MissingError(KDError):
    """A check needs something that another one has already reported as broken."""


def ok(text: str, *shown: Any) -> Finding:
    """All is well."""
    return Finding(Level.OK, text, shown)


def warning(text: str, *shown: Any) -> Finding:
    """It would run, and probably not as meant."""
    return Finding(Level.WARNING, text, shown)


def problem(text: str, *shown: Any) -> Finding:
    """It would fail."""
    return Finding(Level.PROBLEM, text, shown)


def skipped(text: str) -> Finding:
    """Nothing was looked at."""
    return Finding(Level.SKIPPED, text)
