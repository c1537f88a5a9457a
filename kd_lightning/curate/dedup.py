"""Texts that say what an earlier one said: the first stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.minhash import MinHashIndex
from kd_lightning.curate.rouge import RougeIndex
from kd_lightning.curate.texts import Names, at_least, between, named, text_of, words
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Index(Protocol):
    """Texts that were seen."""

    def find(self, text: str) -> float:
        """How like the likest of them is, where that is enough to call it a repetition; else 0."""
        ...

    def add(self, text: str) -> None:
        """See a text."""
        ...


class Dedup(Step):
    """Drops what repeats an earlier record, or a text of a file; a subclass says what repeats."""

    field: Names
    against: Corpus | None

    @abstractmethod
    def index(self) -> Index:
        """An empty one."""

    def seen(self) -> Seen:
        """What comes before the records of a pool that grows."""
        return Seen(self)

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        return self.seen().run(records, work)


class Seen:
    """The texts that new records are compared with: those of a file, and of records before them."""

    def __init__(self, step: Dedup) -> None:
        self._step = step
        self._before = step.index()
        self._known = step.index()
        for text in step.against.texts if step.against is not None else ():
            self._known.add(text)

    def add(self, records: Sequence[Record]) -> None:
        """Compare with these too; one that repeats another adds nothing."""
        for record in records:
            text = text_of(record, self._step.field)
            if text.strip() and not self._known.find(text) and not self._before.find(text):
                self._before.add(text)

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        """Those that repeat nothing; they are not added."""
        new, kept = self._step.index(), []
        for record in records:
            text = text_of(record, self._step.field)
            if not text.strip():
                work.drop(record, f"no {named(self._step.field)}")
            elif self._known.find(text):
                work.drop(record, "repeats a text of `against`")
            elif self._before.find(text) or new.find(text):
                work.drop(record, "repeats an earlier record")
            else:
                new.add(text)
                kept.append(record)
        return kept


class _Same:
    """Texts by what is left of them."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._seen: set[str] = set()

    def _key(self, text: str) -> str:
        return text if self._strict else " ".join(words(text)) or " ".join(text.split())

    def find(self, text: str) -> float:
        return float(self._key(text) in self._seen)

    def add(self, text: str) -> None:
        self._seen.add(self._key(text))


class DedupExact(Dedup):
    """Drop texts that are the same but for case, spaces and punctuation."""

    def __init__(
        self, field: Names = "prompt", strict: bool = False, against: Corpus | None = None
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several whose texts count together.
            strict: Whether case, spaces and punctuation count.
            against: Further texts that none may repeat.
        """
        self.field = field
        self.strict = strict
        self.against = against

    def index(self) -> Index:
        return _Same(self.strict)


class DedupRougeL(Dedup):
    """Drop texts whose ROUGE-L with an earlier one is the threshold or more.

    Source: Wang et al. 2023 (Self-Instruct), arXiv 2212.10560 (threshold 0.7).
    """

    def __init__(
        self,
        field: Names = "prompt",
        threshold: float = 0.7,
        stem: bool = False,
        against: Corpus | None = None,
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several whose texts count together.
            threshold: F-measure from which a text repeats another, 0 to 1.
            stem: Compare the stems of (English) words.
            against: Further texts that none may repeat.
        """
        _threshold(threshold)
        self.field = field
        self.threshold = threshold
        self.stem = stem
        self.against = against

    def index(self) -> Index:
        return RougeIndex(self.threshold, self.stem)


class _MinHash:
    """The index over words, told texts."""

    def __init__(self, inner: MinHashIndex) -> None:
        self._inner = inner

    def find(self, text: str) -> float:
        return self._inner.find(words(text))

    def add(self, text: str) -> None:
        self._inner.add(words(text))


class DedupMinHash(Dedup):
    """Drop texts that share most of their word n-grams with an earlier one, among millions.

    Likeness is Jaccard's; candidates are found by MinHash and banding and compared exactly.
    """

    def __init__(
        self,
        field: Names = "prompt",
        threshold: float = 0.7,
        ngram: int = 3,
        functions: int = 128,
        recall: float = 0.99,
        against: Corpus | None = None,
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several whose texts count together.
            threshold: Shared n-grams by all n-grams of both from which a text repeats another.
            ngram: Words of an n-gram.
            functions: Hash functions: more cost time and let a longer band be used.
            recall: Probability of finding a repetition that is just at the threshold; one that is
                likelier is found more surely.
            against: Further texts that none may repeat.
        """
        _threshold(threshold)
        at_least("ngram", ngram, 1)
        at_least("functions", functions, 1)
        between("recall", recall, 0, 1)
        self.field = field
        self.threshold = threshold
        self.ngram = ngram
        self.functions = functions
        self.recall = recall
        self.against = against

    def index(self) -> Index:
        return _MinHash(MinHashIndex(self.threshold, self.ngram, self.functions, self.recall))


def _threshold(value: float) -> None:
    if not 0 < value <= 1:
        raise KDError(f"threshold must be above 0 and at most 1, not {value:g}")
