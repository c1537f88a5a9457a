"""Records that are far from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kd_lightning.curate.select import amount, check_amount, scored
from kd_lightning.curate.texts import Names, between, named, text_of
from kd_lightning.curate.vectors import Points, TfIdf, Vectors
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind


def centres(points: Points, count: int, first: int) -> list[int]:
    """Rows that cover the others: each next one is the farthest from those before.

    The largest distance to a centre is at most twice the smallest that `count` centres can reach.

    Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance, Theoretical
    Computer Science 38.
    """
    chosen = [first]
    far = _distances(points, first)
    while len(chosen) < min(count, len(points)):
        far[chosen[-1]] = -1.0
        chosen.append(int(far.argmax()))
        far = np.where(far < 0, far, np.minimum(far, _distances(points, chosen[-1])))
    return chosen


def _distances(points: Points, row: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.norm(points - points[row], axis=1).astype(np.float64)
    return found


def _filled(records: Sequence[Record], field: Names, work: Work) -> tuple[list[Record], list[str]]:
    """Records with a text, and the texts."""
    kept, texts = [], []
    for record in records:
        text = text_of(record, field)
        if text.strip():
            kept.append(record)
            texts.append(text)
        else:
            work.drop(record, f"no {named(field)}")
    return kept, texts


class KCentre(Step):
    """Keep so many records that every other one is near one of them (a core set).

    Source: Sener, Savarese 2018, arXiv 1708.00489, algorithm 1; in WaveCoder: Yu et al. 2023,
    arXiv 2312.14187.
    """

    def __init__(
        self,
        k: int | None = None,
        share: float | None = None,
        field: Names = "prompt",
        vectors: Vectors | None = None,
    ) -> None:
        """Store the settings.

        Args:
            k: How many stay.
            share: In place of it, which share of the records.
            field: Their text.
            vectors: How texts become points; None: TfIdf.
        """
        check_amount(k, share)
        self.k = k
        self.share = share
        self.field = field
        self.vectors = vectors or TfIdf()

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return self.vectors.needs()

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        filled, texts = _filled(records, self.field, work)
        count = amount(self.k, self.share, len(filled))
        chosen: set[int] = set()
        if filled and count:
            points = self.vectors.of(texts, work)
            order = centres(points, count, work.rng("first").randrange(len(filled)))
            chosen = set(order)
            work.note("largest distance to a centre", round(_reach(points, order), 6))
        for i, record in enumerate(filled):
            if i not in chosen:
                work.drop(record, "near a chosen record")
        return [record for i, record in enumerate(filled) if i in chosen]


def _reach(points: Points, order: Sequence[int]) -> float:
    far = _distances(points, order[0])
    for row in order[1:]:
        far = np.minimum(far, _distances(points, row))
    return float(far.max())


class _Taken:
    """Points that were taken, side by side."""

    def __init__(self, points: Points, closest: float) -> None:
        self._points = points
        self._taken = np.empty_like(points)
        self._limit = closest - 1e-6
        self.places: list[int] = []

    def near(self, i: int) -> bool:
        """Whether a point is too near to one of them."""
        cosines = self._taken[: len(self.places)] @ self._points[i]
        return len(cosines) > 0 and float(cosines.max()) >= self._limit

    def add(self, i: int) -> None:
        """Take a point."""
        self._taken[len(self.places)] = self._points[i]
        self.places.append(i)


class Novelty(Step):
    """Best first, each only if it is not too near to one that was taken, until there are enough.

    Source: Liu et al. 2023 (DEITA), arXiv 2312.15685 (a cosine of 0.9).
    """

    def __init__(
        self,
        score: str = "score",
        k: int | None = None,
        closest: float = 0.9,
        field: Names = "prompt",
        vectors: Vectors | None = None,
    ) -> None:
        """Store the settings.

        Args:
            score: Field with a number, the best of which comes first.
            k: How many stay at most; None: all that are novel.
            closest: Cosine from which a record is too near to one that was taken.
            field: The text.
            vectors: How texts become points; None: TfIdf.
        """
        between("closest", closest, -1, 1)
        self.score = score
        self.k = k
        self.closest = closest
        self.field = field
        self.vectors = vectors or TfIdf()

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return self.vectors.needs()

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.score, work)
        worth = {record.id: value for record, value in zip(having, values, strict=True)}
        filled, texts = _filled(having, self.field, work)
        points = self.vectors.of(texts, work) if filled else np.zeros((0, 1), np.float32)
        taken = _Taken(points, self.closest)
        for i in sorted(range(len(filled)), key=lambda i: (-worth[filled[i].id], i)):
            if self.k is not None and len(taken.places) >= self.k:
                work.drop(filled[i], "enough records of a higher score")
            elif taken.near(i):
                work.drop(filled[i], "near a record of a higher score")
            else:
                taken.add(i)
        return [filled[i] for i in sorted(taken.places)]


class DedupEmbedding(Step):
    """Drop records whose point is too near to an earlier one's: the same meaning in other words."""

    def __init__(
        self, field: Names = "prompt", closest: float = 0.9, vectors: Vectors | None = None
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several whose texts count together.
            closest: Cosine from which a text repeats another.
            vectors: How texts become points; None: TfIdf (words only).
        """
        between("closest", closest, -1, 1)
        self.field = field
        self.closest = closest
        self.vectors = vectors or TfIdf()

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return self.vectors.needs()

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        filled, texts = _filled(records, self.field, work)
        points = self.vectors.of(texts, work) if filled else np.zeros((0, 1), np.float32)
        taken = _Taken(points, self.closest)
        for i, record in enumerate(filled):
            if taken.near(i):
                work.drop(record, "repeats an earlier record")
            else:
                taken.add(i)
        return [filled[i] for i in taken.places]
