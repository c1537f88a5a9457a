"""Whether a judge can be trusted: answers that say nothing must not pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.elicit.nested import needs_of
from kd_lightning.elicit.pools import Pool, pool
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind


class Canary(Step):
    """Show a judge empty answers before it is believed; the records themselves go on unchanged.

    Each text of the pool is put in place of the answer of a record (or beside it, as the second of
    two candidates) and judged. What passes is a false positive; with a share above `most` the run
    stops. Stands before the step whose judgements are used, with the same settings.

    Source: Zhao et al. 2025, arXiv 2507.08794 (one token fools judges of free text).
    """

    def __init__(
        self,
        judge: Step,
        passes: float | str,
        field: str = "answer",
        score: str = "score",
        most: float = 0.05,
        texts: Pool = "master_keys",
        each: int = 1,
    ) -> None:
        """Store the settings.

        Args:
            judge: Rate, Compare, an Ask that judges: what writes `score`.
            passes: A number: scores from it up pass; a text: that verdict passes. Of two
                candidates: not read, the empty one passes if its score is not below the other's.
            field: Where the empty answer is put: a value, or `candidates` (behind the record's own
                `answer`).
            score: The value that the judge writes.
            most: Share of empty answers that may pass.
            texts: A list, the name of one of the library's pools, or a .yaml file.
            each: Records that each text is tried on.
        """
        self.judge = judge
        self.passes = passes
        self.field = field
        self.score = score
        self.most = most
        self.texts = texts
        self.each = each
        if not 0 <= most < 1 or each < 1:
            raise KDError("Canary: most is a share from 0 to below 1, and each is at least 1")

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return needs_of([self.judge])

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "texts": pool(self.texts)}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        texts = pool(self.texts)
        count = min(len(records), len(texts) * self.each)
        if not records:
            return []
        shown = [
            self._shown(record, texts[i % len(texts)], work)
            for i, record in enumerate(work.rng("shown").sample(list(records), count))
        ]
        with work.inside(type(self.judge).__name__) as inner:
            judged = self.judge.run(shown, inner)
            unread = dict(inner.tally.dropped)
            inner.fallen.clear()  # they are no records of the set
        passed = [record for record in judged if self._passed(record)]
        share = len(passed) / count
        work.note("empty answers shown", count)
        work.note("empty answers that passed", len(passed))
        if unread:
            work.note("empty answers without a judgement", unread)
        if share > self.most:
            worst = str(passed[0]["canary"])[:60]
            raise KDError(
                f"{work.name}: {len(passed)} of {count} answers that say nothing pass the judge "
                f"(such as {worst!r}), more than most = {self.most:g}: choose another judge or "
                "template, for one that is fooled rewards emptiness"
            )
        return list(records)

    def _shown(self, record: Record, text: str, work: Work) -> Record:
        told: dict[str, Any] = {self.field: text}
        if self.field == "candidates":
            if not record.text("answer"):
                raise KDError(f"{work.name}: record {record.id} has no answer to stand beside")
            told = {"candidates": [record.text("answer"), text]}
        return record.changed(work.name, canary=text, **told)

    def _passed(self, record: Record) -> bool:
        if self.field == "candidates":
            own, empty = record["scores"]
            return bool(empty >= own)
        found = record.get(self.score)
        if isinstance(self.passes, str):
            return bool(found == self.passes)
        if not isinstance(found, int | float):
            raise KDError(
                f"Canary: {type(self.judge).__name__} writes no number {self.score!r}: set score "
                "to what it writes, and passes to the verdict where that is a text"
            )
        return found >= self.passes
