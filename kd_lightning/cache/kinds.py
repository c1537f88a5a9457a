"""What is kept of a teacher's word on a token, and how: one class per kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kd_lightning.cache.layout import Plane, Planes
from kd_lightning.kernels.projection import Multiplier, Projection
from kd_lightning.losses.chunks import chunk_rows
from kd_lightning.types import Batch, Head, ModelOutput

if TYPE_CHECKING:
    from kd_lightning.cache.manifest import Manifest

TILES = 4
"""Float32 tensors of a chunk's logits that exist at once."""


@dataclass(frozen=True)
class Asked:
    """The counted tokens of some rows, one row after the other."""

    head: Head
    hidden: Tensor  # [N, D]
    targets: Tensor  # [N]
    keys: tuple[bytes, ...]  # of the rows
    tokens: tuple[int, ...]  # counted ones of each row, N together

    def tiles(self, tiles: int = TILES) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of tokens with the teacher's logits over the ids it knows, `[C, V]` float32.

        The tensor belongs to the reader until the next one is asked for.
        """
        read = getattr(self.head, "projection", None)
        plain = None if read is None else read()
        vocab, count = self.head.vocab, len(self.hidden)
        size = chunk_rows(vocab, tiles, self.hidden.device)
        if not isinstance(plain, Projection):
            for start in range(0, count, size):
                there = slice(start, min(start + size, count))
                yield there, self.head(self.hidden[there])[:, :vocab].float()
            return
        multiplier = Multiplier(plain)
        out = multiplier.empty(min(size, count), multiplier.rows)
        for start in range(0, count, size):
            there = slice(start, min(start + size, count))
            states = multiplier.factor(self.hidden[there])
            logits = multiplier.logits(states, out[: len(states)])
            yield there, logits[:, :vocab].float()


class Kind(ABC):
    """From a teacher's hidden states to planes of numbers and back."""

    name: str
    """As the manifest calls it."""
    planes: tuple[Plane, ...]
    """What a shard holds of every token (or slot)."""

    @property
    def token_bytes(self) -> int:
        """Of one token at most, the row index apart."""
        return sum(plane.bytes for plane in self.planes if plane.per == "token")

    @abstractmethod
    def encode(self, asked: Asked) -> tuple[Planes, dict[str, float]]:
        """The planes of the asked tokens, and sums over them for the manifest."""

    @abstractmethod
    def output(self, planes: Planes, batch: Batch) -> ModelOutput:
        """What a loss reads, on the batch's device."""

    def cut(self, planes: Planes, tokens: Sequence[int]) -> list[Planes]:
        """The planes of the rows by themselves."""
        pieces: list[Planes] = []
        start = 0
        for count in tokens:
            pieces.append({name: value[start : start + count] for name, value in planes.items()})
            start += count
        return pieces


def kind_of(manifest: Manifest) -> Kind:
    """The kind that a manifest describes."""
    from kd_lightning.cache.hidden import Hidden
    from kd_lightning.cache.sampled import Sampled
    from kd_lightning.cache.topk import TopK

    kinds: dict[str, Any] = {kind.name: kind for kind in (TopK, Sampled, Hidden)}
    made: Kind = kinds[manifest.kind](manifest.vocab, **manifest.settings)
    return made


def placed(values: Any, batch: Batch) -> Tensor:
    """A plane as a tensor on the batch's device."""
    return torch.from_numpy(values).to(batch.targets.device, non_blocking=True)
