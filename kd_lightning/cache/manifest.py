"""What a cache holds, of whom, of which data: everything that a training must agree with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from kd_lightning import files
from kd_lightning.cache.layout import Counts
from kd_lightning.errors import KDError

FILE = "manifest.json"
VERSION = 1
SHIFT = "position t predicts token t+1; only positions with a target are stored"
AGAIN = "run the same `python train.py cache` command again"


@dataclass(frozen=True)
class Shard:
    """One file of targets."""

    name: str
    """In the cache's folder."""
    rows: int
    """Rows of the data."""
    tokens: int
    """Counted tokens."""
    slots: int
    """Drawn ids, filled up (sampled only)."""
    bytes: int
    """Size of the file."""
    checksum: str
    """SHA-256 of the file."""
    index_checksum: str
    """SHA-256 of its row index alone."""
    sums: dict[str, float]
    """Sums over the tokens, for the summary."""

    @property
    def counts(self) -> Counts:
        """How much it holds."""
        return Counts(self.rows, self.tokens, self.slots)


@dataclass
class Manifest:
    """`manifest.json`; nothing in it depends on when and where it was written."""

    kind: str
    """topk, sampled or hidden."""
    settings: dict[str, Any]
    """k or draws, temperatures, seed, dtype, ..."""
    vocab: int
    """Ids that the teacher's tokenizer knows."""
    teacher: dict[str, Any]
    """name, how it was configured, digest of its weights."""
    tokenizer: str
    """Digest of its vocabulary and special ids."""
    templates: list[str]
    """Digests of the chat templates with their arguments; of documents: `plain text`."""
    data: dict[str, Any]
    """The data module's settings, and of each split rows, counted tokens and digest of the keys."""
    planned: dict[str, int]
    """shards, rows (each once), tokens, most bytes of a shard, padded tokens of a batch."""
    planes: list[dict[str, Any]]
    """How a shard's numbers stand behind one another, for other readers."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the other files: tokenizer, head."""
    shards: list[Shard] = field(default_factory=list)
    """Those that are written, in order."""
    version: int = VERSION
    shift: str = SHIFT

    @property
    def complete(self) -> bool:
        """Whether every planned shard is written."""
        return len(self.shards) == self.planned["shards"]

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """Those that can be read; None: all."""
        found = self.settings.get("temperatures")
        return None if found is None else tuple(found)

    def sum(self, name: str) -> float | None:
        """A sum over all shards."""
        held = [shard.sums[name] for shard in self.shards if name in shard.sums]
        return sum(held) if held else None

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        content = asdict(self)
        files.write_json(folder / FILE, {**content, "checksum": _checksum(content)})

    def difference(self, other: Manifest) -> str | None:
        """The first thing in which two caches that should be the same differ."""
        for name in (f.name for f in fields(self) if f.name not in ("files", "shards")):
            if json.dumps(getattr(self, name)) != json.dumps(getattr(other, name)):
                return name
        return None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder, complete or not."""
        path = folder / FILE
        if not path.is_file():
            raise KDError(
                f"{folder} holds no teacher's cache: write one with `python train.py cache -c "
                f"<the same configuration> --output={folder}`"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("version") != VERSION:
                raise KDError(
                    f"{path} is of format {content.get('version')}, and this version reads "
                    f"{VERSION}: write the cache anew"
                )
            if content.pop("checksum") != _checksum(content):
                raise KeyError("checksum")
            content["shards"] = [Shard(**shard) for shard in content["shards"]]
            return cls(**content)
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise KDError(
                f"{path} is damaged: delete the folder and write the cache anew"
            ) from None


def _checksum(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
