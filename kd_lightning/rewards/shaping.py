"""Rewards for form alone: length and pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import spoken
from kd_lightning.rewards.base import Around, Asked, Reward
from kd_lightning.security.time_limit import TooSlowError, time_limit
from kd_lightning.types import Batch

SECONDS = 1.0
"""The longest that a pattern may work on one answer."""


class Length(Reward):
    r"""0 for answers of a good length, falling to -1 on both sides of it.

    .. math:: r = -\min\Big(1, \frac{\max(0, n - \mathrm{high})}{\mathrm{soft}} +
        \frac{\max(0, \mathrm{low} - n)}{\mathrm{soft}}\Big)

    Source: the soft punishment of overlong answers of Yu et al. 2025 (DAPO), arXiv 2503.14476,
    equation 13.
    """

    def __init__(
        self,
        low: int = 0,
        high: int | None = None,
        soft: int = 1,
        unit: Literal["tokens", "words", "characters"] = "tokens",
    ) -> None:
        """Store the settings.

        Args:
            low: The shortest good length.
            high: The longest; None: no limit.
            soft: How far beyond a limit the reward has fallen to -1.
            unit: tokens: learned tokens of the row, the end included; words; characters.
        """
        super().__init__()
        self.low = low
        self.high = high
        self.soft = soft
        self.unit = unit
        if low < 0 or soft < 1 or (high is not None and high < low):
            raise KDError("Length: low must be at least 0, high at least low, soft at least 1")

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        return [-min(1.0, self._beyond(n) / self.soft) for n in self._lengths(batch, asked)]

    def _beyond(self, length: int) -> int:
        over = 0 if self.high is None else max(0, length - self.high)
        return over + max(0, self.low - length)

    def _lengths(self, batch: Batch, asked: Sequence[Asked]) -> list[int]:
        if self.unit == "tokens":
            counts: list[int] = spoken(batch).sum(1).tolist()
            return counts[: len(asked)]
        texts = [each.answer for each in asked]
        return [len(t.split()) if self.unit == "words" else len(t) for t in texts]


class Format(Reward):
    """1 for answers that have a form, 0 for others."""

    def __init__(self, pattern: str, whole: bool = True) -> None:
        """Store the settings.

        Args:
            pattern: Regular expression; a dot matches line breaks too.
            whole: Whether the whole answer must match it (False: a part).
        """
        super().__init__()
        self.pattern = pattern
        self.whole = whole

    def check(self, around: Around) -> None:
        super().check(around)
        self._compiled()

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        compiled = self._compiled()
        match = compiled.fullmatch if self.whole else compiled.search
        found = []
        for each in asked:
            try:
                with time_limit(SECONDS):
                    found.append(float(match(each.answer) is not None))
            except TooSlowError:
                raise KDError(
                    f"Format: the pattern {self.pattern!r} works longer than {SECONDS:g} s on an "
                    f"answer to row {each.example.id}: write one without nested repetitions"
                ) from None
        return found

    def _compiled(self) -> re.Pattern[str]:
        try:
            return re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise KDError(f"Format: {self.pattern!r} is no regular expression ({error})") from None
