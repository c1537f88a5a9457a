"""Records that hold a test's questions, so that no student is tested on what it was taught."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.texts import Names, at_least, text_of, words
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Decontaminate(Step):
    """Drop records that share a run of words with a benchmark.

    A benchmark text of fewer words than the run is looked for as a whole; one of fewer than
    `shortest`, which any text may hold by chance, only as the whole of a field.

    Source: Brown et al. 2020 (GPT-3), arXiv 2005.14165, appendix C (13 words).
    """

    def __init__(
        self,
        against: dict[str, Corpus],
        fields: list[str] | None = None,
        ngram: int = 13,
        shortest: int = 5,
    ) -> None:
        """Store the settings.

        Args:
            against: Name of each benchmark to its file, with the column to read.
            fields: What is looked through; None: prompt, answer and messages.
            ngram: Words of a run.
            shortest: Fewest words of a benchmark text that is looked for inside others.
        """
        at_least("shortest", shortest, 1)
        at_least("ngram", ngram, shortest)
        self.against = against
        self.fields = ["prompt", "answer", "messages"] if fields is None else fields
        self.ngram = ngram
        self.shortest = shortest

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        runs: dict[tuple[str, ...], str] = {}
        whole: dict[tuple[str, ...], str] = {}
        for name, corpus in self.against.items():
            for text in corpus.texts:
                told = tuple(words(text))
                if 0 < len(told) < self.shortest:
                    whole.setdefault(told, name)
                elif told:
                    for run in _runs(told, min(self.ngram, len(told))):
                        runs.setdefault(run, name)
        sizes = sorted({len(run) for run in runs})
        kept = []
        for record in records:
            if found := self._found(record, runs, whole, sizes):
                work.drop(record, f"shares words with {found}")
            else:
                kept.append(record)
        return kept

    def _found(
        self,
        record: Record,
        runs: dict[tuple[str, ...], str],
        whole: dict[tuple[str, ...], str],
        sizes: Sequence[int],
    ) -> str:
        for field in self.fields:
            told = tuple(words(text_of(record, field)))
            if told in whole:
                return whole[told]
            for size in sizes:
                for run in _runs(told, size):
                    if run in runs:
                        return runs[run]
        return ""


def _runs(told: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [told[i : i + size] for i in range(len(told) - size + 1)]


class DecontaminateSubstring(Step):
    """Drop records in which a benchmark's text stands, but for case, spaces and punctuation.

    Source: Li et al. 2023 (StarCoder), arXiv 2305.06161; used so by Wei et al. 2023 (Magicoder),
    arXiv 2312.02120.
    """

    def __init__(
        self, against: dict[str, Corpus], fields: Names = "answer", shortest: int = 5
    ) -> None:
        """Store the settings.

        Args:
            against: Name of each benchmark to its file, with the column to read.
            fields: What is looked through.
            shortest: Benchmark texts of fewer words are looked for as the whole only.
        """
        at_least("shortest", shortest, 1)
        self.against = against
        self.fields = fields
        self.shortest = shortest

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        inside: dict[str, str] = {}
        whole: dict[str, str] = {}
        for name, corpus in self.against.items():
            for text in corpus.texts:
                told = words(text)
                place = inside if len(told) >= self.shortest else whole
                place.setdefault(" ".join(told), name)
        kept = []
        for record in records:
            text = " ".join(words(text_of(record, self.fields)))
            padded = f" {text} "
            found = whole.get(text) or next(
                (name for told, name in inside.items() if f" {told} " in padded), ""
            )
            if text and found:
                work.drop(record, f"holds a text of {found}")
            else:
                kept.append(record)
        return kept
