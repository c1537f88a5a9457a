"""Whether a judge's answers can be read often enough to be learned from."""

from __future__ import annotations

from kd_lightning.errors import KDError

WINDOW = 50
"""Judgements of which the share is taken."""


class Readable:
    """Stops a run whose judge has ceased to keep to the form.

    Groups with an unread judgement take no part: beyond some share those that remain are no fair
    part of all, and what is left of a step is noise.
    """

    def __init__(self, most: float, who: str) -> None:
        """`most`: share of a window that may be unread; `who` judges, for messages."""
        if not 0 <= most <= 1:
            raise KDError(f"{who}: most_malformed is a share from 0 to 1 (1: never stop)")
        self.most = most
        self.who = who
        self._asked = self._unread = 0

    def add(self, asked: int, unread: int) -> None:
        """Count a step's judgements; KDError where too many of a window could not be read."""
        self._asked += asked
        self._unread += unread
        if self._asked < WINDOW:
            return
        asked, unread = self._asked, self._unread
        self._asked = self._unread = 0
        if unread > self.most * asked:
            raise KDError(
                f"{self.who}: {unread} of the last {asked} judgements could not be read, more than "
                f"most_malformed = {self.most:g}: choose a judge that keeps to the form, or "
                "judge by choices, or raise most_malformed"
            )
