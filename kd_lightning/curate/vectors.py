"""Texts as points, so that near and far can be said."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning.curate.part import Part
from kd_lightning.curate.texts import at_least, words
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import Work
from kd_lightning.teachers.generator import Kind

Points = NDArray[np.float32]


class Vectors(Part, ABC):
    """How texts become points of length 1: their product is the cosine of their angle."""

    @abstractmethod
    def of(self, texts: Sequence[str], work: Work) -> Points:
        """`[N, D]`; a row of zeros for a text of which nothing is known."""


class TfIdf(Vectors):
    r"""Words by how often they stand here and how rare they are elsewhere; needs no model.

    .. math:: x_w = (1 + \log n_w) \, (1 + \log \frac{1 + N}{1 + d_w})

    n: how often the word stands in the text, d: in how many of the N texts it stands. Words fall
    into `dimensions` places by a hash with a sign, so that meetings cancel out on average.

    Source: Salton, Buckley 1988, Term-weighting approaches in automatic text retrieval; the hash:
    Weinberger et al. 2009, arXiv 0902.2206.
    """

    def __init__(self, dimensions: int = 1024) -> None:
        """Store the settings.

        Args:
            dimensions: Length of the vectors.
        """
        at_least("dimensions", dimensions, 1)
        self.dimensions = dimensions

    def of(self, texts: Sequence[str], work: Work) -> Points:
        counts = [Counter(words(text)) for text in texts]
        holding = Counter(word for count in counts for word in count)
        places = {word: _place(word, self.dimensions) for word in holding}
        found = np.zeros((len(texts), self.dimensions), np.float32)
        for row, count in zip(found, counts, strict=True):
            for word, times in count.items():
                place, sign = places[word]
                rare = 1 + math.log((1 + len(texts)) / (1 + holding[word]))
                row[place] += sign * (1 + math.log(times)) * rare
        return unit(found)


def _place(word: str, dimensions: int) -> tuple[int, int]:
    told = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return (told >> 1) % dimensions, 1 if told & 1 else -1


class HiddenStates(Vectors):
    """The mean of a model's last hidden states over a text: needs a model in this process.

    Of a student that learned with the score `DualEncoder`: its vectors.
    """

    def __init__(
        self, generator: str = "student", max_tokens: int = 512, batch_size: int = 16
    ) -> None:
        """Store the settings.

        Args:
            generator: Name of a local model among the generators.
            max_tokens: Longer texts are cut.
            batch_size: Texts at a time.
        """
        at_least("batch_size", batch_size, 1)
        at_least("max_tokens", max_tokens, 1)
        self.generator = generator
        self.max_tokens = max_tokens
        self.batch_size = batch_size

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset()}

    def of(self, texts: Sequence[str], work: Work) -> Points:
        from kd_lightning.data.encoding import Encoder
        from kd_lightning.teachers.base import Teacher
        from kd_lightning.types import Example

        model = work.generator(self.generator)
        if not isinstance(model, Teacher) or model.tokenizer is None:
            raise KDError(
                f"hidden states need a model in this process, and generators.{self.generator} is a "
                f"{type(model).__name__}: bind a LocalTeacher, or use TfIdf"
            )
        model.open()
        encoder = Encoder(model.tokenizer)
        told = [encoder.document(Example.document(id="", text=text), end=None) for text in texts]
        ids = [row.ids[: self.max_tokens].tolist() for row in told]
        parts = [
            self._states(model, ids[i : i + self.batch_size])
            for i in range(0, len(ids), self.batch_size)
        ]
        return unit(np.concatenate(parts)) if parts else np.zeros((0, 1), np.float32)

    def _states(self, model: Any, ids: Sequence[Sequence[int]]) -> Points:
        import torch

        from kd_lightning.types import IGNORE, Batch, Signal

        shape = (len(ids), max(1, *map(len, ids)) if ids else 1)
        place = next(model.model.parameters()).device
        rows, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for row, filled, told in zip(rows, mask, ids, strict=True):
            row[: len(told)] = torch.tensor(told, dtype=torch.int64)
            filled[: len(told)] = 1
        nothing = torch.full_like(rows, IGNORE)
        skill = torch.zeros(len(ids), dtype=torch.int64)
        batch = Batch(rows, mask, nothing, torch.zeros(shape), skill, skill).to(place)
        states = model.forward(batch, frozenset({Signal.HIDDEN})).hidden.float()
        weights = batch.attention_mask.unsqueeze(-1).to(states)
        means = (states * weights).sum(1) / weights.sum(1).clamp_min(1)
        found: Points = means.cpu().numpy()
        return found


def unit(points: Points) -> Points:
    """Each row at length 1; zeros stay."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    found: Points = (points / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found
