"""Sets of shingles that are much alike, found without comparing all with all.

Forty lines on numpy instead of a library: the candidates that banding finds are compared exactly
here, so that only its recall is a matter of chance, and its settings follow from that recall.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def shingles(words: list[str], size: int) -> Hashes:
    """Hashes of all runs of `size` words, each once, ascending; a shorter text is one run."""
    runs = [words[i : i + size] for i in range(max(1, len(words) - size + 1))] if words else []
    told = {hashlib.blake2b(" ".join(r).encode(), digest_size=8).digest() for r in runs}
    return np.unique(np.frombuffer(b"".join(sorted(told)), np.uint64))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared elements by all elements of two sets; 0 of two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    total = len(a) + len(b) - shared
    return shared / total if total else 0.0


def bands(functions: int, threshold: float, recall: float) -> tuple[int, int]:
    r"""Bands, and rows of each, of so many hash functions: as long as `recall` allows.

    Two sets of likeness s share a band with probability :math:`1 - (1 - s^{rows})^{bands}`.
    """
    fitting = [
        rows
        for rows in range(1, functions + 1)
        if 1 - (1 - threshold**rows) ** (functions // rows) >= recall
    ]
    rows = max(fitting, default=1)
    return functions // rows, rows


class MinHashIndex:
    """Sets of shingles, and whether one of them is much like another.

    Source: Broder 1997, On the resemblance and containment of documents; banding: Leskovec,
    Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.
    """

    def __init__(
        self, threshold: float, size: int = 3, functions: int = 128, recall: float = 0.99
    ) -> None:
        """`recall`: the probability of finding a set whose likeness is just the threshold."""
        self._threshold = threshold
        self._size = size
        self._bands, self._rows = bands(functions, threshold, recall)
        drawn = np.random.default_rng(1997)
        most = np.iinfo(np.uint64).max
        self._factors = drawn.integers(0, most, self._bands * self._rows, np.uint64) | np.uint64(1)
        self._offsets = drawn.integers(0, most, self._bands * self._rows, np.uint64)
        self._sets: list[Hashes] = []
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(self._bands)]

    def _keys(self, found: Hashes) -> list[bytes]:
        """Its buckets: the smallest value of each function, some together."""
        hashed = found[:, None] * self._factors + self._offsets  # modulo 2^64
        hashed ^= hashed >> np.uint64(32)
        smallest = hashed.min(0).reshape(self._bands, self._rows)
        return [row.tobytes() for row in smallest]

    def find(self, words: list[str]) -> float:
        """The largest likeness of an entered set, if it is the threshold or more; else 0."""
        own = shingles(words, self._size)
        if not len(own):
            return 0.0
        met: set[int] = set()
        for bucket, key in zip(self._buckets, self._keys(own), strict=True):
            met.update(bucket.get(key, ()))
        best = max((jaccard(own, self._sets[i]) for i in sorted(met)), default=0.0)
        return best if best >= self._threshold - 1e-12 else 0.0

    def add(self, words: list[str]) -> None:
        """Enter a text's words."""
        own = shingles(words, self._size)
        if len(own):
            for bucket, key in zip(self._buckets, self._keys(own), strict=True):
                bucket.setdefault(key, []).append(len(self._sets))
        self._sets.append(own)
