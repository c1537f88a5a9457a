"""Records that ask the same and answer it differently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kd_lightning.curate.texts import Names, named, text_of, words
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Contradictions(Step):
    """Drop all records of one question that do not all give one answer: none of them is trusted.

    Case, spaces and punctuation make no difference; signs alone do, where there are no words.

    Source: the instance filter of Wang et al. 2023 (Self-Instruct), arXiv 2212.10560, section 2.2.
    """

    def __init__(self, asks: Names = "prompt", answers: Names = "answer") -> None:
        """Store the settings.

        Args:
            asks: Field of the question, or several whose texts count together.
            answers: Field of the answer, or several.
        """
        self.asks = asks
        self.answers = answers

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        said: dict[str, set[str]] = defaultdict(set)
        for record in records:
            said[_plain(text_of(record, self.asks))].add(_plain(text_of(record, self.answers)))
        kept = []
        for record in records:
            question = _plain(text_of(record, self.asks))
            if not question:
                work.drop(record, f"no {named(self.asks)}")
            elif len(said[question]) > 1:
                work.drop(record, "answered differently elsewhere")
            else:
                kept.append(record)
        return kept


def _plain(text: str) -> str:
    return " ".join(words(text)) or " ".join(text.split())
