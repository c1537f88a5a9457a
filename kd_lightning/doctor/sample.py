"""Some training rows, rendered and encoded, with what the length policy does to them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kd_lightning.data.encoding import Encoded
from kd_lightning.data.length import Lengths
from kd_lightning.data.mixture import Mixture
from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError
from kd_lightning.types import Example

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule

READ_SECONDS = 4.0
"""How long rows are read."""

ROWS = 300
"""How many of them are encoded, evenly spread, the first and the last among them."""


@dataclass
class Sample:
    """What was found."""

    rows: int = 0
    """Rows that were read."""
    whole: bool = True
    """Whether these are all."""
    first: Row | None = None
    last: Row | None = None
    examples: list[Example] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)
    """As they are, before the length policy."""
    kept: list[Encoded] = field(default_factory=list)
    """As they are learned from."""
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    refused: str = ""
    """What the length policy `error` says of the first row that is too long."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each encoded row, before the length policy."""
        return [len(row) for row in self.encoded]

    @classmethod
    def of(cls, data: KDDataModule, seconds: float = READ_SECONDS, most: int = ROWS) -> Sample:
        """Read for a while, then encode some of what was read."""
        found = cls()
        rows: list[Row] = []
        began = time.monotonic()
        limit = data.limits["train"]
        for row in data.placed("train"):
            rows.append(row)
            enough = data.streaming and len(rows) >= most
            if limit is not None and len(rows) >= limit:
                break
            if enough or time.monotonic() - began > seconds:
                found.whole = False
                break
        found.rows = len(rows)
        if not rows:
            raise KDError("there is no training row: check --data.path")
        found.first, found.last = rows[0], rows[-1]
        chosen = rows
        if len(rows) > most:
            chosen = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
        policies: dict[int, Lengths] = {}
        for row in chosen:
            found._take(row, data, policies)
        found.kept = data.grouped(found.kept, "train")
        for policy in policies.values():
            found.truncated += policy.truncated
            found.dropped.update(policy.dropped)
        return found

    def _take(self, row: Row, data: KDDataModule, policies: dict[int, Lengths]) -> None:
        example = data.example(row)
        owner = data.part(example) if isinstance(data, Mixture) else data
        encoded = owner.encodings(example)
        self.examples.append(example)
        self.encoded += encoded
        policy = policies.setdefault(id(owner), owner.lengths("train"))
        try:
            self.kept += policy.together(encoded)
        except KDError as error:
            self.refused = self.refused or str(error)
