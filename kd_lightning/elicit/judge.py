"""What all steps that judge a record's texts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_lightning.elicit.asking import Heard, Item, Manner, Question, put
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling

JUDGING = Sampling(max_new_tokens=512)
"""Greedy: the same texts get the same judgement."""


class Judge(Step):
    """Asks a generator for judgements of records' texts."""

    def __init__(
        self,
        template: str,
        generator: str = "teacher",
        sampling: Sampling = JUDGING,
        attempts: int = 3,
        given: dict[str, Any] | None = None,
        allow_cut: bool = False,
        most_malformed: float = 0.2,
    ) -> None:
        """Store the settings.

        Args:
            template: One of the library's templates, or the path of a .jinja file.
            generator: Name of the generator that judges.
            sampling: How judgements are drawn.
            attempts: How often a question is put until its record falls.
            given: Further names for the template, the same for all records.
            allow_cut: Whether an answer that was cut at the length limit counts.
            most_malformed: Share of the questions (of 20 or more) that may come to no answer in
                form before the step stops: what falls then is no fair part of all. 1: never stop.
        """
        self.template = template
        self.generator = generator
        self.sampling = sampling
        self.attempts = attempts
        self.given = given
        self.allow_cut = allow_cut
        self.most_malformed = most_malformed
        self.manner.check(1, type(self).__name__)

    @property
    def manner(self) -> Manner:
        """How it asks."""
        return Manner(
            self.sampling,
            self.attempts,
            self.allow_cut,
            most_malformed=self.most_malformed,
        )

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.GENERATE})}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "template": Template(self.template).settings()}

    def question(
        self,
        template: Template,
        record: Record,
        key: str,
        values: Mapping[str, Any],
        check: Callable[[Item], None] | None = None,
        n: int = 1,
    ) -> Question:
        """The template about a record and `values`; `check` refuses items that do not fit."""

        def read(text: str) -> list[Item]:
            items = template.parser.parse(text)
            for item in items:
                if check is not None:
                    check(item)
            return items

        known = {**(self.given or {}), **record.values, **values}
        prompt = template.prompt(known, record.id)
        return Question(f"{record.id}/{key}", prompt, read, n, template.stop)

    def put(
        self, groups: Sequence[list[Question]], records: Sequence[Record], work: Work
    ) -> list[list[Heard] | None]:
        """Ask the questions about each record, all at once; None: one failed, the record fell."""
        flat = [question for group in groups for question in group]
        heard = iter(put(work, self.generator, flat, self.manner))
        found: list[list[Heard] | None] = []
        for record, group in zip(records, groups, strict=True):
            said = [next(heard) for _ in group]
            bad = next((h.failure for h in said if not h.answers), None)
            if bad is not None:
                work.drop(record, bad)
            found.append(None if bad is not None else said)
        return found


def candidates(record: Record, who: str, exactly: int = 0) -> list[str]:
    """A record's candidates, or an error that says how many are wanted."""
    found = record.get("candidates")
    enough = isinstance(found, list) and len(found) >= 2 and all(isinstance(c, str) for c in found)
    if not enough or (exactly and len(found) != exactly):
        raise KDError(
            f"{who} needs {exactly or 'two or more'} texts in `candidates`, and record {record.id} "
            "has others or none: put a step that writes them before it (Candidates)"
        )
    return list(found)
