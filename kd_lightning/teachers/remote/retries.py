"""What is tried again, and after how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

AGAIN = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 507, 508, 509, 520, 521, 522, 523, 524, 529}
)
"""Statuses that pass: the same request may succeed later."""

BUSY = frozenset({425, 429})
"""Those of them that only ask to wait: they use up no try."""


@dataclass(frozen=True)
class Backoff:
    r"""Waits that double, each shortened at random by up to a half, so that many go apart.

    .. math:: w_k = \min(c, b\,2^k)\,(1 - u/2), \quad u \sim U[0, 1)

    Source: Metcalfe, Boggs 1976, doi 10.1145/360248.360253 (doubling, at random).
    """

    first: float = 0.5
    """Seconds, b."""
    longest: float = 30.0
    """Seconds, c."""

    def seconds(self, attempt: int, rng: Random) -> float:
        """Before the attempt after the `attempt`-th, counted from 0."""
        return min(self.longest, self.first * 2.0 ** min(attempt, 60)) * (1 - rng.random() / 2)


def asked_wait(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that `Retry-After` asks to wait, given as a number or as a date; None: not said."""
    told = headers.get("Retry-After", "").strip()
    if not told:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            when = parsedate_to_datetime(told)
        except (ValueError, TypeError):
            return None
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
