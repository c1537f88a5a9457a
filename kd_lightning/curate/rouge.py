"""ROUGE-L of one text against very many: exact, with bounds that leave out nearly all of them."""

from __future__ import annotations

from array import array
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from kd_lightning.curate.texts import words


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, 64 cells of the table at a time and more.

    Source: Hyyrö 2004, Bit-parallel LCS-length computation revisited, AWOCA.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # a zero for each step that the subsequence has made
    for word in b:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return len(a) - row.bit_count()


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


class RougeIndex:
    r"""Texts, and whether one of them is much like another: F = 2 LCS / (m + n).

    The bags' intersection bounds the common subsequence from above, and an index from words to
    texts gives it for all texts at once: the subsequence is computed only where the bound allows
    it. The values are those of `metrics.answers.rouge_l` (which stems) on English text.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.
    """

    def __init__(self, threshold: float, stem: bool = False) -> None:
        """`threshold`: texts at least so alike are found; `stem`: compare words' stems."""
        self._threshold = threshold
        self._stem = stem
        self._texts: list[list[str]] = []
        self._lengths = array("q")
        self._holding: dict[tuple[str, int], array[int]] = {}

    def _words(self, text: str) -> list[str]:
        found = words(text)
        if self._stem:
            found = [_stemmer().stem(w) if len(w) > 3 else w for w in found]
        return found

    def find(self, text: str) -> float:
        """The largest F of an entered text, if it is the threshold or more; else 0."""
        told = self._words(text)
        if not told or not self._texts:
            return 0.0
        shared = np.zeros(len(self._texts), np.int64)
        for item in _occurrences(told):
            if (holders := self._holding.get(item)) is not None:
                shared[np.frombuffer(holders, np.int64)] += 1
        lengths = np.frombuffer(self._lengths, np.int64) + len(told)
        bound = 2 * shared / lengths
        likely = np.flatnonzero((shared > 0) & (bound >= self._threshold - 1e-12))
        best = 0.0
        for i in likely[np.argsort(-bound[likely], kind="stable")].tolist():
            if bound[i] <= best:
                break
            best = max(best, 2 * common(told, self._texts[i]) / int(lengths[i]))
        return best if best >= self._threshold - 1e-12 else 0.0

    def add(self, text: str) -> None:
        """Enter a text."""
        told = self._words(text)
        for item in _occurrences(told):
            self._holding.setdefault(item, array("q")).append(len(self._texts))
        self._texts.append(told)
        self._lengths.append(len(told))


def _occurrences(told: list[str]) -> list[tuple[str, int]]:
    """The first `a`, the second `a`, ...: bags as sets, none twice."""
    return [(word, i) for word, count in Counter(told).items() for i in range(count)]
