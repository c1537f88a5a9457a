"""Self-knowledge: a model's own answers, the best or the accepted of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kd_lightning.elicit.ask import Ask
from kd_lightning.elicit.asking import SAMPLING, Heard, Item, Question, put
from kd_lightning.elicit.nested import needs_of, through
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling


class BestOf(Ask):
    """The best of several own answers, by a step that writes `scores` for `candidates`.

    Writes `answer`, `candidates` and `scores`; the first of equals is taken.
    """

    def __init__(
        self,
        scorer: Step,
        template: str = "answer",
        generator: str = "student",
        n: int = 4,
        sampling: Sampling = SAMPLING,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            scorer: Reads `candidates`, writes `scores` (Rate, Rank, a grader).
            template: Writes `answer`.
            generator: Name of the generator that answers.
            n: Answers for each record.
            sampling: How they are drawn.
            more: As for `Ask`.
        """
        super().__init__(template, generator, n=n, sampling=sampling, **more)
        self.scorer = scorer

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return needs_of([self.scorer], super().needs())

    def made(self, group: Sequence[Record], extra: Item, said: Heard, work: Work) -> list[Record]:
        texts = [answer.items[0]["answer"] for answer in said.answers]
        return [group[0].changed(work.name, said.by, **{**extra, "candidates": texts})]

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        drawn = super().run(records, work)
        several = [record for record in drawn if len(record["candidates"]) > 1]
        scored = {record.id: record for record in through([self.scorer], several, work)}
        several_ids = {record.id for record in several}
        made = []
        for record in drawn:
            found = scored.get(record.id)
            if record.id not in several_ids:  # one good answer: nothing to choose
                made.append(record.changed(work.name, answer=record["candidates"][0]))
            elif found is not None:
                scores, texts = found.get("scores"), found["candidates"]
                if not isinstance(scores, list) or len(scores) != len(texts):
                    raise KDError(
                        f"BestOf: {type(self.scorer).__name__} wrote no score for each candidate: "
                        "choose a scorer that writes `scores` (Rate with field: candidates)"
                    )
                best = scores.index(max(scores))
                made.append(found.changed(work.name, answer=texts[best]))
        return made


class Accepted(Ask):
    """Own answers that all filters accept; rejection sampling.

    Each answer becomes a record that passes through the filters; at most `most` different ones are
    kept for each prompt. Where none is accepted and a `hint` template is named, the prompt is asked
    once more with it (rationalisation), and its answers pass the same filters.

    Source: Zelikman et al. 2022 (STaR), arXiv 2203.14465; Yuan et al. 2023 (RFT), arXiv 2308.01825;
    Gulcehre et al. 2023 (ReST), arXiv 2308.08998.
    """

    def __init__(
        self,
        filters: list[Step],
        template: str = "rationale",
        generator: str = "student",
        n: int = 4,
        sampling: Sampling = SAMPLING,
        most: int = 1,
        hint: str = "",
        distinct: str = "rationale",
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            filters: What accepts (a verifier, a vote); records keep their ids in them.
            template: Writes the answer.
            generator: Name of the generator that answers.
            n: Answers for each record.
            sampling: How they are drawn.
            most: Accepted answers that are kept for each record, the first ones.
            hint: Template that tells the `reference`, for records without an accepted answer; '':
                those fall.
            distinct: The value by which answers are different ('answer' where there is no other).
            more: As for `Ask`.
        """
        super().__init__(template, generator, n=n, sampling=sampling, **more)
        self.filters = filters
        self.most = most
        self.hint = hint
        self.distinct = distinct
        if not filters or most < 1:
            raise KDError("Accepted: name at least one filter, and most must be at least 1")

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return needs_of(self.filters, super().needs())

    def settings(self) -> dict[str, Any]:
        told = {"hint": Template(self.hint).settings()} if self.hint else {}
        return {**super().settings(), **told}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        kept = self._pass(records, super().run(records, work), work)
        missing = [record for record in records if record.id not in kept]
        if self.hint and missing:
            work.note("accepted without a hint", len(kept))
            kept |= self._pass(missing, self._hinted(missing, work), work)
        for record in records:
            if record.id not in kept:
                work.drop(record, "no accepted answer")
        return [made for record in records for made in kept.get(record.id, [])]

    def made(self, group: Sequence[Record], extra: Item, said: Heard, work: Work) -> list[Record]:
        return self._children(group[0], extra, said, work, "")

    def lost(self, group: Sequence[Record], failure: str, work: Work) -> None:
        work.count(f"without an answer: {failure}")  # it falls below, unless a hint helps

    def _children(
        self, record: Record, extra: Item, said: Heard, work: Work, mark: str
    ) -> list[Record]:
        return [
            record.child(
                work.name,
                f"{mark}{i}",
                answer.by,
                **{**extra, **{self._name(k): v for k, v in answer.items[0].items()}},
            )
            for i, answer in enumerate(said.answers)
        ]

    def _pass(
        self, records: Sequence[Record], drawn: Sequence[Record], work: Work
    ) -> dict[str, list[Record]]:
        parents = {record.id for record in records}
        kept: dict[str, list[Record]] = {}
        seen: set[tuple[str, str]] = set()
        for made in through(self.filters, drawn, work):
            parent = made.id.rpartition("/")[0]
            assert parent in parents
            own = (parent, made.text(self.distinct) or made.text("answer"))
            if own in seen:
                work.drop(made, "the same as another accepted answer")
            elif len(kept.get(parent, ())) >= self.most:
                work.drop(made, f"more than {self.most} accepted")
            else:
                seen.add(own)
                kept.setdefault(parent, []).append(made)
        return kept

    def _hinted(self, records: Sequence[Record], work: Work) -> list[Record]:
        template = Template(self.hint)
        questions = [
            Question(
                f"{record.id}/hint",
                template.prompt(self.values([record]), record.id),
                template.parser.parse,
                self.n,
                template.stop,
            )
            for record in records
        ]
        heard = put(work, self.generator, questions, replace(self.manner, logprobs=False))
        return [
            made
            for record, said in zip(records, heard, strict=True)
            for made in self._children(record, {"hinted": True}, said, work, "h")
        ]
