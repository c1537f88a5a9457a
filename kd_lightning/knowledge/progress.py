"""How far a step is, how fast, what it has cost and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from kd_lightning.teachers.generator import Reply, Usage

EVERY = 10.0
"""Seconds between two lines."""


class Progress:
    """Says a line from time to time."""

    def __init__(self, name: str, said: Callable[[str], None], every: float = EVERY) -> None:
        """`name` of the step; `said` is told."""
        self._name = name
        self._said = said
        self._every = every
        self._begun = self._last = time.monotonic()
        self._usage = Usage()
        self._here = 0
        self._failed = 0

    def __call__(self, generator: str, done: int, total: int, reply: Reply) -> None:
        """One more reply; `done` of `total`, those known from before included."""
        self._here += 1
        self._failed += bool(reply.failure)
        self._usage += reply.usage
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        rate = self._here / (now - self._begun)
        parts = [
            f"{self._name}: {generator} {done:,} of {total:,}",
            f"{rate:,.1f}/s",
            f"{self._usage.prompt_tokens + self._usage.completion_tokens:,} tokens",
        ]
        if self._usage.money:
            parts.append(f"{self._usage.money:.2f} spent")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        parts.append(f"about {_time((total - done) / rate)} left")
        self._said(", ".join(parts))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
