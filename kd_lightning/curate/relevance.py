"""How much a document has to do with a question."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from kd_lightning.curate.part import Part
from kd_lightning.curate.texts import at_least, between, words
from kd_lightning.curate.vectors import TfIdf, Vectors
from kd_lightning.knowledge.step import Work
from kd_lightning.teachers.generator import Kind

Asked = tuple[str, Sequence[str]]
"""A question and its documents."""


class Relevance(Part, ABC):
    """A number for each document of each question; larger is more relevant."""

    @abstractmethod
    def of(self, asked: Sequence[Asked], work: Work) -> list[list[float]]:
        """The numbers, in the order of the documents."""


class BM25(Relevance):
    r"""Words that the document shares with the question, the rare ones more; needs no model.

    .. math:: \sum_{w \in x} \log\Big(1 + \frac{N - n_w + 1/2}{n_w + 1/2}\Big)
        \frac{f_w (k_1 + 1)}{f_w + k_1 (1 - b + b |d| / \overline{|d|})}

    f: how often the word stands in the document, n: in how many of the N documents; all different
    documents of the records are the N. A word that the question says twice counts twice.

    Source: Robertson, Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond,
    equation 3.15; the 1 in the logarithm, without which common words count below 0, is Lucene's.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        """Store the settings.

        Args:
            k1: How soon a word that is repeated says nothing more.
            b: How much long documents are discounted, 0 to 1.
        """
        at_least("k1", k1, 0)
        between("b", b, 0, 1)
        self.k1 = k1
        self.b = b

    def of(self, asked: Sequence[Asked], work: Work) -> list[list[float]]:
        known = {doc: Counter(words(doc)) for _, docs in asked for doc in docs}
        holding = Counter(word for count in known.values() for word in count)
        length = sum(count.total() for count in known.values()) / max(1, len(known)) or 1.0

        def score(question: Sequence[str], count: Counter[str]) -> float:
            norm = self.k1 * (1 - self.b + self.b * count.total() / length)
            return math.fsum(
                math.log(1 + (len(known) - holding[word] + 0.5) / (holding[word] + 0.5))
                * count[word]
                * (self.k1 + 1)
                / (count[word] + norm)
                for word in question
                if count[word]
            )

        return [[score(words(asks), known[doc]) for doc in docs] for asks, docs in asked]


class Cosine(Relevance):
    """How near the two lie as points: of words, or of an encoder (`HiddenStates`)."""

    def __init__(self, vectors: Vectors | None = None) -> None:
        """Store the settings.

        Args:
            vectors: How texts become points; None: TfIdf.
        """
        self.vectors = vectors or TfIdf()

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return self.vectors.needs()

    def of(self, asked: Sequence[Asked], work: Work) -> list[list[float]]:
        places: dict[str, int] = {}
        for asks, docs in asked:
            for text in (asks, *docs):
                places.setdefault(text, len(places))
        points = self.vectors.of(list(places), work)
        return [
            np.dot(points[[places[doc] for doc in docs]], points[places[asks]]).tolist()
            for asks, docs in asked
        ]
