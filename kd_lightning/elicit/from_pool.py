"""A pool of prompts that grows out of demonstrations drawn from itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.elicit.asking import SAMPLING, Heard, Manner, Question, put
from kd_lightning.elicit.nested import Pool, needs_of
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, born
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling


class FromPool(Step):
    """New prompts from demonstrations: seeds and what was made from them, drawn anew each time.

    A round is `batch` requests at once; its items pass the `filters`, which see the pool before
    them (so that a dedup drops what repeats it), and what is left joins the pool.

    Source: Wang et al. 2023 (Self-Instruct), arXiv 2212.10560, section 2.2: 6 seeds and 2 of its
    own in each prompt, ROUGE-L below 0.7.
    """

    def __init__(
        self,
        target: int,
        template: str = "self_instruct",
        generator: str = "teacher",
        sampling: Sampling = SAMPLING,
        from_seeds: int = 6,
        from_made: int = 2,
        filters: list[Step] | None = None,
        batch: int = 64,
        patience: int = 5,
        attempts: int = 1,
        given: dict[str, Any] | None = None,
        keep_seeds: bool = False,
        allow_cut: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            target: How many new records.
            template: Reads `demos`, a list of records' values; writes one or several items.
            generator: Name of the generator that is asked.
            sampling: How answers are drawn.
            from_seeds: Demonstrations out of the seeds, in each request.
            from_made: Demonstrations out of what was made; seeds stand in while there is nothing.
            filters: Steps that new records pass, with the pool before them.
            batch: Requests in a round.
            patience: Rounds without a new record after which it stops short of the target.
            attempts: How often a malformed answer is asked for again within its round.
            given: Further names for the template.
            keep_seeds: Whether the seeds go on with the new records.
            allow_cut: Whether an answer that was cut at the length limit counts.
        """
        self.target = target
        self.template = template
        self.generator = generator
        self.sampling = sampling
        self.from_seeds = from_seeds
        self.from_made = from_made
        self.filters = filters
        self.batch = batch
        self.patience = patience
        self.attempts = attempts
        self.given = given
        self.keep_seeds = keep_seeds
        self.allow_cut = allow_cut
        if min(target, batch, patience) < 1 or min(from_seeds, from_made) < 0:
            raise KDError("FromPool: target, batch and patience must be at least 1")

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return needs_of(self.filters or [], {self.generator: frozenset({Kind.GENERATE})})

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "template": Template(self.template).settings()}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        wanted = self.from_seeds + self.from_made
        if len(records) < max(1, wanted):
            raise KDError(
                f"FromPool shows {wanted} demonstrations and has {len(records)} seeds: give more "
                "seeds, or lower from_seeds and from_made"
            )
        template, manner = (
            Template(self.template),
            Manner(self.sampling, self.attempts, self.allow_cut),
        )
        pool = Pool(self.filters or [], records)
        made: list[Record] = []
        rounds = idle = 0
        while len(made) < self.target and idle < self.patience:
            shown = [self._demos(records, made, work.rng(rounds, i)) for i in range(self.batch)]
            questions = [
                Question(
                    f"{rounds}.{i}", self._prompt(template, demos), template.parser.parse,
                    stop=template.stop,
                )
                for i, demos in enumerate(shown)
            ]  # fmt: skip
            heard = put(work, self.generator, questions, manner)
            new = self._born(rounds, shown, heard, work)
            new = pool.admit(new, work)
            idle = 0 if new else idle + 1
            made += new
            rounds += 1
        work.note("rounds", rounds)
        if len(made) < self.target:
            work.note("short of the target", self.target - len(made))
        for record in made[self.target :]:
            work.drop(record, "beyond the target")
        return [*(records if self.keep_seeds else ()), *made[: self.target]]

    def _demos(
        self, seeds: Sequence[Record], made: Sequence[Record], rng: random.Random
    ) -> list[Record]:
        own = min(self.from_made, len(made))
        chosen = [
            *rng.sample(list(seeds), self.from_seeds + self.from_made - own),
            *rng.sample(list(made), own),
        ]
        rng.shuffle(chosen)
        return chosen

    def _prompt(self, template: Template, demos: Sequence[Record]) -> Any:
        values = {**(self.given or {}), "demos": [demo.values for demo in demos]}
        return template.prompt(values, demos[0].id if demos else "(none)")

    def _born(
        self, rounds: int, shown: Sequence[list[Record]], heard: Sequence[Heard], work: Work
    ) -> list[Record]:
        new = []
        for i, (demos, said) in enumerate(zip(shown, heard, strict=True)):
            if not said.answers:
                work.count(f"requests in vain: {said.failure}")
                continue
            new += [
                born(f"{work.name}/{rounds}.{i}.{j}", item, work.name, demos, said.by)
                for j, item in enumerate(said.answers[0].items)
            ]
        return new
