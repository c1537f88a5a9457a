"""Texts that records are compared with: benchmarks, an earlier set, a pool."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kd_lightning.curate.texts import Names, text_of
from kd_lightning.data.sources import open_origin
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record


@dataclass(frozen=True)
class Corpus:
    """The texts of a file; they are read when they are needed first."""

    path: str
    """A data file, a pattern with *, a folder, or a name on the hub."""
    field: Names = "prompt"
    """Column of the text (or several)."""
    split: str | None = None
    """Which split, where it has several; None: all."""

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All texts, none empty."""
        origin = open_origin(self.path)
        origin.download()
        if self.split is not None and self.split not in origin.splits:
            raise KDError(
                f"{self.path} has no split {self.split!r}: write one of {', '.join(origin.splits)}"
            )
        splits = origin.splits if self.split is None else (self.split,)
        found = []
        for split in splits:
            for row in origin.read(split):
                text = text_of(Record(row.id, row.values), self.field)
                if not text:
                    columns = ", ".join(row.values) or "none"
                    raise KDError(
                        f"{row.place}: there is no text in {self.field!r} (columns: {columns}): "
                        "write the right one to `field`"
                    )
                found.append(text)
        return tuple(found)

    def settings(self) -> dict[str, Any]:
        """Its content by digest: what it says matters, not where it stands."""
        content = hashlib.sha256()
        for text in self.texts:
            content.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        return {"field": self.field, "texts": content.hexdigest()[:16], "count": len(self.texts)}
