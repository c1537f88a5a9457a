"""What most candidates come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kd_lightning.curate.check import ALONG
from kd_lightning.curate.extract import Extract, Number, settled
from kd_lightning.curate.texts import at_least, between, picked
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Vote(Step):
    r"""The outcome that most candidates come to, with the share of them that does.

    .. math:: c = \max_a |\{i : a_i = a\}| \, / \, n

    A candidate without an outcome counts in n. Of outcomes with as many votes the first wins.

    Source: Wang et al. 2022 (self-consistency), arXiv 2203.11171; as a filter: Huang et
    al. 2022 (LMSI), arXiv 2210.11610.
    """

    def __init__(
        self,
        field: str = "candidates",
        extract: Extract | None = None,
        threshold: float = 0.5,
        min_votes: int = 1,
        into: str = "answer",
        confidence: str = "confidence",
        keep_agreeing: bool = True,
    ) -> None:
        """Store the settings.

        Args:
            field: List of the candidates.
            extract: How the outcome is read: Number, Boxed, After, Found, Whole; None: Number.
            threshold: Share from which a record stays.
            min_votes: Fewest votes for it.
            into: Field that the first candidate of the winners is written to.
            confidence: Field that the share is written to.
            keep_agreeing: Take the other candidates out of the list.
        """
        between("threshold", threshold, 0, 1)
        at_least("min_votes", min_votes, 1)
        self.field = field
        self.extract = extract or Number()
        self.threshold = threshold
        self.min_votes = min_votes
        self.into = into
        self.confidence = confidence
        self.keep_agreeing = keep_agreeing

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        kept = []
        for record in records:
            texts = record.get(self.field, [])
            if not isinstance(texts, list) or not texts:
                work.drop(record, f"no {self.field}")
                continue
            told = [self.extract.of(str(text)) for text in texts]
            outcomes = [None if one is None else settled(one) for one in told]
            votes = Counter(one for one in outcomes if one is not None)
            if not votes:
                work.drop(record, "no candidate has a final answer")
                continue
            winner, count = votes.most_common(1)[0]  # of equals the first that was met
            share = count / len(texts)
            if share < self.threshold or count < self.min_votes:
                work.drop(record, "candidates disagree")
                continue
            places = [i for i, one in enumerate(outcomes) if one == winner]
            values: dict[str, Any] = {}
            if self.keep_agreeing and len(places) < len(texts):
                values = picked(record, places, len(texts), (self.field, *ALONG))
            values |= {self.into: str(texts[places[0]]), self.confidence: share}
            kept.append(record.changed(work.name, **values))
        return kept
