"""What happens to a row that is longer than the limit; everything lost is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kd_lightning.data.encoding import Encoded
from kd_lightning.errors import KDError

Truncation = Literal["error", "drop", "left", "right", "window"]
"""`error`: stop and name the row; `drop`: leave the row out; `left`: cut the oldest tokens before
the last answer; `right`: cut the end of the answer; `window`: cut a document into rows."""


@dataclass
class Lengths:
    """Applies a policy to rows and keeps the counts."""

    limit: int
    """Most tokens of a row."""
    policy: Truncation
    """What to do with a longer one."""
    bos: int | None = None
    """A token that stays at the front when the front is cut."""
    unanswered: bool = False
    """Whether rows without an answer are kept."""
    empty: bool = False
    """Whether the end of an empty answer is learned."""
    truncated: int = 0
    """Rows that were cut."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""

    def apply(self, row: Encoded, policy: Truncation | None = None) -> list[Encoded]:
        """The row as it is learned from: as it was, cut, in several parts, or not at all."""
        kept = [row]
        if not row.example.answer and not (self.empty and row.answered):
            return self._unanswered(row)
        if len(row) > self.limit:
            how: dict[str, Callable[[Encoded], list[Encoded]]] = {
                "error": self._refuse,
                "drop": self._drop,
                "left": self._left,
                "right": self._right,
                "window": self._windows,
            }
            kept = how[policy or self.policy](row)
        elif not row.answered:
            self.dropped["nothing to learn"] += 1
            return []
        return kept

    def together(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Rows that stay together: where one is left out, so are the others."""
        parts = [self.apply(row) for row in rows]
        if all(parts):
            return [row for part in parts for row in part]
        if others := sum(map(bool, parts)):
            self.dropped["another answer to its prompt was left out"] += others
        return []

    def _unanswered(self, row: Encoded) -> list[Encoded]:
        """A row that only asks: kept for generation where its split allows that, never learned."""
        if not self.unanswered:
            self.dropped["no answer"] += 1
            return []
        if len(row) <= self.limit:
            return [row]
        return self._refuse(row) if self.policy == "error" else self._drop(row)

    def _refuse(self, row: Encoded) -> list[Encoded]:
        first = int(np.flatnonzero(row.weights)[0]) if row.weights.any() else len(row)
        what = "its answer would be cut off wholly" if first >= self.limit else "too many"
        raise KDError(
            f"row {row.example.id} has {len(row)} tokens, and {self.limit} are allowed ({what}): "
            "raise --data.max_length or set --data.truncation=drop, left or right"
        )

    def _drop(self, row: Encoded) -> list[Encoded]:
        self.dropped[f"longer than {self.limit} tokens"] += 1
        return []

    def _left(self, row: Encoded) -> list[Encoded]:
        keep = int(self.bos is not None and row.ids[0] == self.bos)
        learned = np.flatnonzero(row.weights[1:]) + 1
        if not len(learned):
            self.dropped["nothing to learn"] += 1
            return []
        gaps = np.flatnonzero(np.diff(learned) > 1)
        answer = int(learned[gaps[-1] + 1]) if len(gaps) else int(learned[0])
        start = len(row) - self.limit + keep
        if start >= answer:
            self.dropped[f"answer alone longer than {self.limit} tokens"] += 1
            return []
        self.truncated += 1
        return [row.cut(start, len(row), keep)]

    def _right(self, row: Encoded) -> list[Encoded]:
        cut = row.cut(0, self.limit)
        if not cut.answered:
            self.dropped["answer cut off by the length limit"] += 1
            return []
        self.truncated += 1
        return [cut]

    def _windows(self, row: Encoded) -> list[Encoded]:
        """Parts that overlap by one token, so that each token is predicted exactly once."""
        self.truncated += 1
        step = self.limit - 1
        return [row.cut(i, i + self.limit) for i in range(0, len(row) - 1, step)]
