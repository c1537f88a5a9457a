"""Sets of elicited knowledge, read as any other data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_lightning.data.files import Bad, read_file
from kd_lightning.data.sources import SPLITS, Found, Origin
from kd_lightning.errors import KDError
from kd_lightning.files import digest_of

CARD = "card.json"
"""The file that makes a folder a finished set."""

KIND = "knowledge set"
"""What its card says that it is."""


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a finished set."""
    path = folder / CARD
    if not path.is_file():
        begun = (folder / "steps").is_dir()
        raise KDError(
            f"{folder} was not finished: run its kd elicit command again, which goes on"
            if begun
            else f"{folder} is no knowledge set (no {CARD}): name a folder that kd elicit wrote"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise KDError(f"{path} cannot be read: write the set again with kd elicit") from None
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise KDError(f"{path} is not the card of a knowledge set")
    return card


class Knowledge(Origin):
    """A folder that `kd elicit` wrote; its shards are compared with the card's checksums."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of a finished set."""
        self.name = str(folder)
        self.card = read_card(folder)
        self._folder = folder

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if any(self._shards(s)))

    def _shards(self, split: str) -> Iterator[Mapping[str, Any]]:
        return (shard for shard in self.card["shards"] if shard["split"] == split)

    def read(self, split: str, bad: Bad | None = None) -> Iterator[Found]:
        for shard in self._shards(split):
            path = self._folder / str(shard["name"])
            if not path.is_file() or digest_of(path) != shard["sha256"]:
                raise KDError(
                    f"{path} is not what kd elicit wrote (checksum): run its command again, or "
                    "take a whole copy of the set"
                )
            for values, line in read_file(path, bad):
                name = str(values.get("id", f"{path.name}:{line}"))
                kept = {k: v for k, v in values.items() if k != "lineage"}
                yield Found(kept, f"{path}:{line}", name)
