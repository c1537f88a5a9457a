"""Pairs of a better and a worse answer, for losses that learn from preferences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any

from kd_lightning.curate.texts import as_number, at_least
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Pairs(Step):
    """Writes `chosen` and `rejected`; a subclass says which, or why there are none."""

    @abstractmethod
    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        """Chosen, rejected and further values; or the reason why the record has no pair."""

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            found = self.pair(record, work.rng(record.id))
            if isinstance(found, str):
                work.drop(record, found)
            elif found[0] == found[1]:
                work.drop(record, "both answers are the same")
            else:
                chosen, rejected, more = found
                made.append(record.changed(work.name, chosen=chosen, rejected=rejected, **more))
        return made


def rated(record: Record, candidates: str, scores: str) -> tuple[list[Any], list[float]] | str:
    """Candidates with a score, and the scores; or the reason why there are none."""
    texts, values = record.get(candidates, []), record.get(scores, [])
    if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
        return f"{candidates} and {scores} are no lists of one length"
    numbers = [as_number(value) for value in values]
    kept = [(t, n) for t, n in zip(texts, numbers, strict=True) if n is not None]
    return [text for text, _ in kept], [number for _, number in kept]


class PairsBestWorst(Pairs):
    """The candidate with the highest score against the one with the lowest.

    Source: as in Yuan et al. 2024 (self-rewarding), arXiv 2401.10020.
    """

    def __init__(
        self, candidates: str = "candidates", scores: str = "scores", margin: float = 0.0
    ) -> None:
        """Store the settings.

        Args:
            candidates: List of answers.
            scores: List of their scores.
            margin: A pair whose scores differ by no more than this is a tie, and falls.
        """
        at_least("margin", margin, 0)
        self.candidates = candidates
        self.scores = scores
        self.margin = margin

    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        found = rated(record, self.candidates, self.scores)
        if isinstance(found, str):
            return found
        texts, values = found
        if len(texts) < 2:
            return "fewer than two candidates"
        best = values.index(max(values))
        worst = self.other(values, best, rng)
        gap = values[best] - values[worst]
        return (texts[best], texts[worst], {"margin": gap}) if gap > self.margin else "tie"

    def other(self, values: Sequence[float], best: int, rng: Random) -> int:
        """Which candidate is rejected."""
        return values.index(min(values))


class PairsBestRandom(PairsBestWorst):
    """The candidate with the highest score against one of the others, drawn.

    Source: Tunstall et al. 2023 (Zephyr), arXiv 2310.16944.
    """

    def other(self, values: Sequence[float], best: int, rng: Random) -> int:
        """Which candidate is rejected."""
        return rng.choice([i for i in range(len(values)) if i != best])


class PairsGoldOwn(Pairs):
    """The right answer against one of the model's own, drawn.

    Source: Chen et al. 2024 (SPIN), arXiv 2401.01335.
    """

    def __init__(self, gold: str = "reference", own: str = "candidates") -> None:
        """Store the settings.

        Args:
            gold: The right answer.
            own: The model's answer, or a list of them.
        """
        self.gold = gold
        self.own = own

    def pair(self, record: Record, rng: Random) -> tuple[Any, Any, dict[str, Any]] | str:
        gold, own = record.get(self.gold), record.get(self.own)
        if gold in (None, "", []):
            return f"no {self.gold}"
        others = [o for o in (own if isinstance(own, list) else [own]) if o not in (None, "", gold)]
        return (gold, rng.choice(others), {}) if others else f"no other {self.own}"
