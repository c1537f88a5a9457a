"""Pairs whose order is known without scores: by how the answers were made, or from a ranking."""

from __future__ import annotations

from random import Random
from typing import Any

from kd_lightning.curate.pairs import Pairs
from kd_lightning.curate.texts import at_least
from kd_lightning.knowledge.records import Record


class PairsOfFields(Pairs):
    """Two fields, one better than the other by the way they were made: spoilt, contrasted, revised.

    Source: as in Yang et al. 2023 (RLCD), arXiv 2307.12950.
    """

    def __init__(self, chosen: str = "revision", rejected: str = "answer") -> None:
        """Store the settings.

        Args:
            chosen: Field with the better answer.
            rejected: Field with the worse.
        """
        self.chosen = chosen
        self.rejected = rejected

    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        for name in (self.chosen, self.rejected):
            if record.get(name) in (None, "", []):
                return f"no {name}"
        return record[self.chosen], record[self.rejected], {}


class PairsBySource(Pairs):
    """The candidate of the better generator against one of a worse: larger, or better prompted.

    Source: Kim et al. 2023 (ALMoST), arXiv 2305.13735.
    """

    def __init__(
        self,
        order: list[str],
        candidates: str = "candidates",
        sources: str = "sources",
    ) -> None:
        """Store the settings.

        Args:
            order: Names of the sources, the best first; candidates of others are left out.
            candidates: List of answers.
            sources: List of who gave them.
        """
        at_least("the number of sources in order", len(set(order)), 2)
        self.order = order
        self.candidates = candidates
        self.sources = sources

    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        texts, by = record.get(self.candidates, []), record.get(self.sources, [])
        if not isinstance(texts, list) or not isinstance(by, list) or len(texts) != len(by):
            return f"{self.candidates} and {self.sources} are no lists of one length"
        ranks = [(self.order.index(s), i) for i, s in enumerate(by) if s in self.order]
        best = min(ranks, default=(0, 0))
        worse = [i for rank, i in ranks if rank > best[0]]
        return (texts[best[1]], texts[rng.choice(worse)], {}) if worse else "one source only"


class PairsAgreed(Pairs):
    """The candidate that a ranking, or the verdict of a comparison, puts first against its last."""

    def __init__(
        self, candidates: str = "candidates", agreed: str = "agreed", names: str = "ABCDEFGHIJ"
    ) -> None:
        """Store the settings.

        Args:
            candidates: List of answers.
            agreed: Field with a ranking (numbers of candidates from 0, or their letters, the best
                first), or with the letter of the better of two.
            names: The candidates' letters.
        """
        self.candidates = candidates
        self.agreed = agreed
        self.names = names

    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        texts, told = record.get(self.candidates, []), record.get(self.agreed)
        if not isinstance(texts, list) or len(texts) < 2:
            return "fewer than two candidates"
        ranking = told if isinstance(told, list) else [told]
        places = [self._place(name, len(texts)) for name in ranking]
        if not places or None in places:
            return "tie or unknown candidate"
        if len(places) == 1:
            if len(texts) != 2 or places[0] is None:
                return "one candidate is ranked only"
            places.append(1 - places[0])
        first, last = places[0], places[-1]
        assert first is not None and last is not None
        return texts[first], texts[last], {}

    def _place(self, name: Any, count: int) -> int | None:
        if isinstance(name, str):
            name = self.names.find(name.strip()) if len(name.strip()) == 1 else -1
        known = isinstance(name, int) and not isinstance(name, bool) and 0 <= name < count
        return name if known else None
