"""Prompts that evolve: rewritten by drawn operators, generation after generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.elicit.asking import SAMPLING, Manner, Question, put
from kd_lightning.elicit.nested import needs_of, through
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling

OPERATORS = {
    "evolve_constraints": 1.0,
    "evolve_deepen": 1.0,
    "evolve_concretise": 1.0,
    "evolve_reasoning": 1.0,
    "evolve_breadth": 1.0,
}
"""Four in depth, one in breadth, equally likely."""

OLD = ("answer", "reference", "rationale", "messages", "candidates", "scores", "tests")
"""Values that belong to the prompt as it was."""


class Evolve(Step):
    """Rewrite prompts by operators drawn for each record and round, and keep every generation.

    A rewritten prompt is a new record with `generation`, `operator` and `evolved_from` (the prompt
    before); answers of the old prompt are taken away. One that fails the filters is eliminated, and
    the prompt before it is tried again in the next round.

    Source: Xu et al. 2023 (WizardLM), arXiv 2304.12244, section 3.
    """

    def __init__(
        self,
        rounds: int = 4,
        operators: dict[str, float] | None = None,
        generator: str = "teacher",
        sampling: Sampling = SAMPLING,
        filters: list[Step] | None = None,
        attempts: int = 3,
        keep_originals: bool = True,
        forget: list[str] | None = None,
        given: dict[str, Any] | None = None,
        allow_cut: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            rounds: Generations.
            operators: Template to its weight in the draw; each reads and writes `prompt`. Not
                given: the five of the paper, equally.
            generator: Name of the generator that is asked.
            sampling: How answers are drawn.
            filters: Steps that new records pass; what falls is eliminated.
            attempts: How often a question is put.
            keep_originals: Whether the prompts that came in go on too.
            forget: Values taken away from new records. Not given: answers, references and the like.
            given: Further names for the templates.
            allow_cut: Whether an answer that was cut at the length limit counts.
        """
        self.rounds = rounds
        self.operators = operators or dict(OPERATORS)
        self.generator = generator
        self.sampling = sampling
        self.filters = filters
        self.attempts = attempts
        self.keep_originals = keep_originals
        self.forget = list(OLD) if forget is None else forget
        self.given = given
        self.allow_cut = allow_cut
        if rounds < 1 or min(self.operators.values()) < 0 or not any(self.operators.values()):
            raise KDError("Evolve: rounds must be at least 1, weights at least 0 and one above it")

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return needs_of(self.filters or [], {self.generator: frozenset({Kind.GENERATE})})

    def settings(self) -> dict[str, Any]:
        read = [Template(name).settings() for name in self.operators]
        return {**super().settings(), "templates": read}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        templates = {name: Template(name) for name in self.operators}
        manner = Manner(self.sampling, self.attempts, self.allow_cut)
        current = list(records)
        kept = list(records) if self.keep_originals else []
        for generation in range(1, self.rounds + 1):
            drawn = [self._operator(record, generation, work) for record in current]
            questions = [
                Question(
                    f"{record.id}/{generation}",
                    templates[name].prompt({**(self.given or {}), **record.values}, record.id),
                    templates[name].parser.parse,
                    stop=templates[name].stop,
                )
                for record, name in zip(current, drawn, strict=True)
            ]
            new: dict[str, Record] = {}
            for record, name, said in zip(
                current, drawn, put(work, self.generator, questions, manner), strict=True
            ):
                if not said.answers:
                    work.count(f"not evolved: {said.failure}")
                    continue
                child = self._child(record, name, generation, said.item, said.by, work)
                if child.text("prompt").split() == record.text("prompt").split():
                    work.drop(child, "evolved into itself")
                else:
                    new[child.id] = child
            passed = through(self.filters or [], list(new.values()), work)
            kept += passed
            after = {record.id: record for record in passed}
            current = [after.get(_name(record, generation), record) for record in current]
        return kept

    def _operator(self, record: Record, generation: int, work: Work) -> str:
        names, weights = zip(*self.operators.items(), strict=True)
        return str(work.rng(record.id, generation, "operator").choices(names, weights)[0])

    def _child(
        self, record: Record, name: str, generation: int, item: dict[str, Any], by: str, work: Work
    ) -> Record:
        gone = dict.fromkeys(self.forget)
        told = {"generation": generation, "operator": Template(name).settings()["template"]}
        values = {**gone, **told, "evolved_from": record.get("prompt"), **item}
        return record.child(work.name, f"e{generation}", by, **values)


def _name(record: Record, generation: int) -> str:
    return f"{record.id}/e{generation}"
