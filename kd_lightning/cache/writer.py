"""Runs a teacher over rows and writes what it says, file by file, so that no work is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from kd_lightning import files
from kd_lightning.cache import layout, plan
from kd_lightning.cache.kinds import Asked, Kind, kind_of
from kd_lightning.cache.layout import Counts, Planes
from kd_lightning.cache.manifest import FILE, Manifest, Shard
from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoded
from kd_lightning.errors import KDError
from kd_lightning.types import IGNORE, Batch, ModelOutput, Signal

LOGITS = frozenset({Signal.LOGITS})


class Knows(Protocol):
    """The part of a teacher that is needed here."""

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        """Hidden states and head."""
        ...


class Writer:
    """Fills a folder with the files that a manifest plans.

    Each file is written beside its place, flushed and moved there; then the manifest the same way.
    Killed at any moment and started again with the same settings, it ends with the same bytes as
    an undisturbed run.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        rows: Sequence[Encoded],
        teacher: Knows,
        collate: Collate,
        device: torch.device,
        said: Callable[[Shard, int, int], None] = lambda shard, number, total: None,
    ) -> None:
        """`said`: told of each file, its number and how many there are."""
        self.folder = folder
        self.manifest = manifest
        self.kind: Kind = kind_of(manifest)
        self.pieces = plan.shards(rows, manifest.planned["shard_tokens"])
        self.teacher = teacher
        self.collate = collate
        self.device = device
        self.said = said

    def write(self) -> Manifest:
        """What is missing; the caller holds the folder's lock."""
        self._go_on()
        held = {shard.name: shard for shard in self.manifest.shards}
        for number, rows in enumerate(self.pieces):
            name = f"shard-{number:05d}.bin"
            if name not in held:
                held[name] = self._write(name, rows)
                self.manifest.shards = [held[known] for known in sorted(held)]
                self.manifest.write(self.folder)
            self.said(held[name], number + 1, len(self.pieces))
        return self.manifest

    def _go_on(self) -> None:
        """Take over the whole files of an earlier run with the same settings; drop the others."""
        for left in self.folder.glob(".*.partial"):
            left.unlink()
        if not (self.folder / FILE).is_file():
            return
        earlier = Manifest.read(self.folder)
        if differs := earlier.difference(self.manifest):
            raise KDError(
                f"{self.folder} holds a cache with another {differs} "
                f"({_shown(getattr(earlier, differs))}, now "
                f"{_shown(getattr(self.manifest, differs))}): "
                "write another --output, or delete that folder"
            )
        self.manifest.shards = [s for s in earlier.shards if self._whole(s)]

    def _whole(self, shard: Shard) -> bool:
        path = self.folder / shard.name
        return path.is_file() and files.digest_of(path) == shard.checksum

    def _write(self, name: str, rows: Sequence[Encoded]) -> Shard:
        planes, sums = self._asked(rows)
        tokens = np.array([row.answered for row in rows], np.int64)
        slots = np.zeros_like(tokens)
        for plane in self.kind.planes:
            if plane.per == "slot" and plane.every == 1:
                slots = np.array([len(found[plane.name]) for found in planes], np.int64)
        values: Planes = {
            "key": np.frombuffer(b"".join(row.key for row in rows), "u1").reshape(-1, 16),
            "start": np.cumsum(tokens) - tokens,
            "tokens": tokens,
            "slot": np.cumsum(slots) - slots,
            "slots": slots,
        }
        for plane in self.kind.planes:
            values[plane.name] = np.concatenate([found[plane.name] for found in planes])
        counts = Counts(len(rows), int(tokens.sum()), int(slots.sum()))
        checksum = files.write(self.folder / name, layout.parts(self.kind.planes, counts, values))
        size = layout.size(self.kind.planes, counts)
        own = layout.index_checksum(counts, values)
        return Shard(name, counts.row, counts.token, counts.slot, size, checksum, own, sums)

    @torch.inference_mode()
    def _asked(self, rows: Sequence[Encoded]) -> tuple[list[Planes], dict[str, float]]:
        """What the teacher says of each row, and sums over them."""
        found: dict[int, Planes] = {}
        sums: dict[str, float] = {}
        for places in plan.batches(rows, self.manifest.planned["batch_tokens"]):
            mine = [rows[i] for i in places]
            batch = self.collate(mine).to(self.device)
            output = self.teacher.forward(batch, LOGITS)
            if output.sparse is not None:
                raise KDError(
                    "a cache is written from a teacher with all logits: use the live teacher, or "
                    "a cache of hidden states"
                )
            counted = (batch.targets != IGNORE).flatten().nonzero().squeeze(-1)
            tokens = tuple(row.answered for row in mine)
            asked = Asked(
                output.head,
                output.hidden.flatten(0, 1)[counted],
                batch.targets.flatten()[counted],
                batch.keys,
                tokens,
            )
            planes, more = self.kind.encode(asked)
            for i, piece in zip(places, self.kind.cut(planes, tokens), strict=True):
                found[i] = piece
            for name, value in more.items():
                sums[name] = sums.get(name, 0.0) + value
        return [found[i] for i in range(len(rows))], sums


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
