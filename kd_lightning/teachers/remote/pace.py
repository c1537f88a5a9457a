"""Not faster than a server allows: so many requests and tokens a minute."""

from __future__ import annotations

from kd_lightning.errors import KDError

MINUTE = 60.0


class Rate:
    """An even flow of units, with at most `burst` seconds' worth at once.

    The generic cell rate algorithm: one number says when the flow so far would be over at the
    allowed rate.

    Source: ITU-T Recommendation I.371, annex A (virtual scheduling).
    """

    def __init__(self, per_minute: float | None, burst: float = 1.0) -> None:
        """Store the settings.

        Args:
            per_minute: Units a minute; None: no limit.
            burst: Seconds whose units may go at once.
        """
        if per_minute is not None and not per_minute > 0:
            raise KDError(f"a limit per minute must be greater than 0, not {per_minute}")
        self.per_minute = per_minute
        self.burst = burst
        self._over = float("-inf")

    def take(self, units: float, now: float) -> float:
        """Seconds to wait before these units may go; they are counted."""
        if self.per_minute is None:
            return 0.0
        start = max(self._over, now)
        self._over = start + units * MINUTE / self.per_minute
        return max(0.0, start - self.burst - now)

    def correct(self, units: float) -> None:
        """So many more units (or fewer, below 0) than were counted."""
        if self.per_minute is not None:
            self._over += units * MINUTE / self.per_minute


class Pace:
    """When the next request may go: after both rates, and after what the server asked to wait."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """See `Rate`."""
        self.requests = Rate(requests_per_minute)
        self.tokens = Rate(tokens_per_minute)
        self._held = float("-inf")

    def hold(self, until: float) -> None:
        """Nobody goes before this time: the server has said so to one of us."""
        self._held = max(self._held, until)

    def take(self, tokens: int, now: float) -> float:
        """Seconds to wait before one request of so many tokens may go; it is counted."""
        waits = self.requests.take(1, now), self.tokens.take(tokens, now)
        return max(*waits, self.held(now))

    def held(self, now: float) -> float:
        """Seconds for which the server has asked everybody to wait."""
        return max(0.0, self._held - now)
