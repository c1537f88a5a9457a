"""Of what was retrieved for a question, the part that has to do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.curate.relevance import BM25, Relevance
from kd_lightning.curate.texts import at_least, text_of
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind


class Retrieve(Step):
    """Keep the documents of each record that are most relevant to its question, the best first.

    Source: the extractive compressor of Xu, Shi, Choi 2023 (RECOMP), arXiv 2310.04408.
    """

    def __init__(
        self,
        k: int = 1,
        by: Relevance | None = None,
        question: str = "prompt",
        docs: str = "docs",
        into: str = "docs",
        scores: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            k: How many stay; of equals the earlier ones.
            by: What relevance is; None: BM25.
            question: Field of the question.
            docs: List of the documents: texts, or objects with a `text`.
            into: Field that those which stay are written to.
            scores: Field for the list of their relevance; None: none.
        """
        at_least("k", k, 1)
        self.k = k
        self.by = by or BM25()
        self.question = question
        self.docs = docs
        self.into = into
        self.scores = scores

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return self.by.needs()

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having: list[Record] = []
        asked: list[tuple[str, list[str]]] = []
        for record in records:
            asks, docs = text_of(record, self.question), record.get(self.docs)
            if not asks or not isinstance(docs, list) or not docs:
                work.drop(record, f"no {self.docs if asks else self.question}")
            else:
                having.append(record)
                asked.append((asks, [_text(doc) for doc in docs]))
        found = self.by.of(asked, work)
        return [self._best(r, told, work) for r, told in zip(having, found, strict=True)]

    def _best(self, record: Record, relevance: Sequence[float], work: Work) -> Record:
        docs = record[self.docs]
        order = sorted(range(len(docs)), key=lambda i: (-relevance[i], i))[: self.k]
        values: dict[str, Any] = {self.into: [docs[i] for i in order]}
        if self.scores is not None:
            values[self.scores] = [relevance[i] for i in order]
        return record.changed(work.name, **values)


def _text(doc: Any) -> str:
    return str(doc.get("text", "")) if isinstance(doc, Mapping) else str(doc)
