"""Rows that cannot be used: named and refused, left out within a budget, or put into quarantine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from kd_lightning.data.rows import Kinds, Row
from kd_lightning.errors import KDError

T = TypeVar("T")

SHOWN = 3
"""How many rows a message names."""
CERTAIN = 100
"""Rows after which a share is judged while reading goes on."""


class BadRows:
    """One policy for everything that can be wrong with a row, from the file to the rendering."""

    def __init__(self, policy: Literal["fail", "skip", "quarantine"], share: float) -> None:
        """Store the settings.

        Args:
            policy: What happens to a bad row.
            share: Largest share of bad rows, 0 to below 1.
        """
        if not 0 <= share < 1:
            raise KDError("--data.bad_share must be at least 0 and below 1")
        self.policy = policy
        self.share = share
        self.kinds: Kinds = {}
        self.notes: list[str] = []
        self._folder = Path("quarantine")
        self._writes = True
        self.begin("train")

    def place(self, folder: str | Path, rank: int, part: str = "") -> None:
        """Where quarantined rows go; only the first process writes them."""
        self._folder, self._writes = Path(folder) / "quarantine" / part, rank == 0

    def begin(self, split: str) -> None:
        """Count anew."""
        self.split = split
        self.kinds.clear()
        self.read = self.used = 0
        self.bad: list[str] = []
        if self._writes and self.policy == "quarantine":
            self._file(split).unlink(missing_ok=True)

    def attempt(self, row: Row, use: Callable[[Row], T]) -> T | None:
        """What is made of a row; None for a bad one that is left out."""
        try:
            made = use(row)
        except KDError as error:
            self.take(error, dict(row.values_by_column))
            return None
        self.used += 1
        return made

    def saw(self) -> None:
        """A row was read (whether this split uses it or not)."""
        self.read += 1

    def take(self, error: KDError, content: Any) -> None:
        """Leave a bad row out, or raise what is wrong with it."""
        if self.policy == "fail":
            raise error
        self.bad.append(str(error))
        if self.policy == "quarantine" and self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            told = {"error": str(error), "row": content}
            with self._file(self.split).open("a", encoding="utf-8") as file:
                file.write(json.dumps(told, ensure_ascii=True, default=str) + "\n")
        if self._total() >= CERTAIN:
            self._within_budget()

    def end(self) -> None:
        """All rows were read: say what was left out."""
        if not self.bad:
            return
        self._within_budget()
        kept = f", kept in {self._file(self.split)}" if self.policy == "quarantine" else ""
        note = f"{len(self.bad)} bad rows of {self.split} left out{kept}: {self._named()}"
        self.notes.append(note)
        rank_zero_warn(note)

    def _total(self) -> int:
        return max(self.read, self.used) + len(self.bad)

    def _within_budget(self) -> None:
        total = self._total()
        if len(self.bad) > self.share * total:
            raise KDError(
                f"{len(self.bad)} of {total} rows of {self.split} are bad, more than "
                f"--data.bad_share={self.share:g} allows: {self._named()}"
            )

    def _named(self) -> str:
        more = f" (and {len(self.bad) - SHOWN} more)" if len(self.bad) > SHOWN else ""
        return "; ".join(self.bad[:SHOWN]) + more

    def _file(self, split: str) -> Path:
        return self._folder / f"{split}.jsonl"
