"""The atom of elicitation: records into a template, one request each, a parser, records again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kd_lightning.elicit.asking import SAMPLING, Heard, Item, Manner, Question, put
from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.elicit.pools import Pool, pool
from kd_lightning.elicit.shots import Shots
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, born
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling

Keep = Literal["first", "each", "list", "best"]
Group = Literal["consecutive", "drawn"]


class Ask(Step):
    """Ask a generator about each record; what the parser reads out of the answer joins its values.

    All records are asked in one round; malformed answers are asked for again, with another seed and
    a temperature of at least 0.5, and fall after `attempts` rounds with the parser's reason.
    """

    def __init__(
        self,
        template: str,
        generator: str = "teacher",
        sampling: Sampling = SAMPLING,
        n: int = 1,
        attempts: int = 3,
        keep: Keep = "first",
        reads: dict[str, str] | None = None,
        rename: dict[str, str] | None = None,
        given: dict[str, Any] | None = None,
        draw: dict[str, Pool] | None = None,
        shots: Shots | None = None,
        arity: int = 1,
        group: Group = "consecutive",
        allow_cut: bool = False,
        most_malformed: float = 1.0,
    ) -> None:
        """Store the settings.

        Args:
            template: One of the library's templates, or the path of a .jinja file.
            generator: Name of the generator that is asked.
            sampling: How answers are drawn; seeds are drawn from the run's.
            n: Answers for each record.
            attempts: How often a question is put until its record falls.
            keep: `first`: the first good answer joins the record; `best`: the one with the highest
                mean log-probability; `list`: the values of all become lists, beside the list
                `sources` of who gave them; `each`: every item of every answer becomes a record.
            reads: Name in the template to the record's value that stands there.
            rename: Name that the parser gives to the value that it becomes.
            given: Further names for the template, the same for all records.
            draw: Name to a pool (a list, one of the library's, a .yaml file); one entry is drawn
                for each record, stands in the template and joins the record.
            shots: Demonstrations, as `shots` in the template.
            arity: Records in one request, as the list `records` in the template; above 1 they
                become one new record.
            group: Which go together: `consecutive` ones, or `drawn` partners for each.
            allow_cut: Whether an answer that was cut at the length limit counts.
            most_malformed: Share of the questions (of 20 or more) that may come to no answer in
                form before the step stops. 1: never.
        """
        self.template = template
        self.generator = generator
        self.sampling = sampling
        self.n = n
        self.attempts = attempts
        self.keep = keep
        self.reads = reads
        self.rename = rename
        self.given = given
        self.draw = draw
        self.shots = shots
        self.arity = arity
        self.group = group
        self.allow_cut = allow_cut
        self.most_malformed = most_malformed
        self.manner.check(n, type(self).__name__)
        if arity < 1:
            raise KDError(f"{type(self).__name__}: arity must be at least 1")

    @property
    def manner(self) -> Manner:
        """How it asks."""
        return Manner(
            self.sampling,
            self.attempts,
            self.allow_cut,
            logprobs=self.keep == "best",
            most_malformed=self.most_malformed,
        )

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.GENERATE})}

    def settings(self) -> dict[str, Any]:
        drawn = {name: pool(told) for name, told in (self.draw or {}).items()}
        told = {"template": Template(self.template).settings(), "draw": drawn}
        return {**super().settings(), **told}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template = Template(self.template)
        pools = {name: pool(told) for name, told in (self.draw or {}).items()}
        groups = self._groups(records, work)
        drawn = [
            {name: work.rng(group[0].id, name).choice(entries) for name, entries in pools.items()}
            for group in groups
        ]
        shown = self.shots.pool(records) if self.shots is not None and groups else []
        questions = []
        for group, extra in zip(groups, drawn, strict=True):
            values = {**self.values(group), **extra}
            if self.shots is not None:
                values["shots"] = self.shots.choose(group[0], shown, work.rng(group[0].id, "shots"))
            prompt = template.prompt(values, group[0].id)
            questions.append(
                Question(group[0].id, prompt, self._reader(template, group), self.n, template.stop)
            )
        heard = put(work, self.generator, questions, self.manner)
        made: list[Record] = []
        for group, extra, said in zip(groups, drawn, heard, strict=True):
            if said.answers:
                made += self.made(group, extra, said, work)
            else:
                self.lost(group, said.failure, work)
        return made

    def lost(self, group: Sequence[Record], failure: str, work: Work) -> None:
        """No good answer came."""
        for record in group if self.group == "consecutive" else group[:1]:
            work.drop(record, failure)

    def values(self, group: Sequence[Record]) -> dict[str, Any]:
        """What the template may name."""
        rows = [
            {**record.values, **{k: record.get(v) for k, v in (self.reads or {}).items()}}
            for record in group
        ]
        own = rows[0] if self.arity == 1 else {}
        return {**(self.given or {}), **own, "records": rows}

    def checked(self, items: list[Item], group: Sequence[Record]) -> list[Item]:
        """Items that fit their records; `Malformed` where they do not."""
        return items

    def made(self, group: Sequence[Record], extra: Item, said: Heard, work: Work) -> list[Record]:
        """The records that good answers make."""
        items = [
            ({self._name(k): v for k, v in item.items()}, answer.by)
            for answer in said.answers
            for item in answer.items
        ]
        if self.keep == "each":
            return [
                self._record(group, {**extra, **item}, by, work, str(i))
                for i, (item, by) in enumerate(items)
            ]
        if self.keep == "list":
            names = dict.fromkeys(name for item, _ in items for name in item)
            lists: Item = {name: [item.get(name) for item, _ in items] for name in names}
            lists["sources"] = [by for _, by in items]
            return [self._record(group, {**extra, **lists}, said.by, work)]
        best = 0
        if self.keep == "best":
            means = [_mean(answer.completion.logprobs, self.generator) for answer in said.answers]
            best = means.index(max(means))
        answer = said.answers[best]
        item = {self._name(k): v for k, v in answer.items[0].items()}
        return [self._record(group, {**extra, **item}, answer.by, work)]

    def _record(
        self, group: Sequence[Record], values: Item, by: str, work: Work, suffix: str = ""
    ) -> Record:
        if self.arity > 1:
            name = "+".join(record.id for record in group)
            return born(f"{name}/{suffix or '0'}", values, work.name, group, by)
        if suffix:
            return group[0].child(work.name, suffix, by, **values)
        return group[0].changed(work.name, by, **values)

    def _name(self, parsed: str) -> str:
        return (self.rename or {}).get(parsed, parsed)

    def _reader(self, template: Template, group: Sequence[Record]) -> Any:
        def read(text: str) -> list[Item]:
            items = self.checked(template.parser.parse(text), group)
            if not items:
                raise Malformed("nothing in it")
            if {"id", "lineage"} & {self._name(name) for item in items for name in item}:
                raise Malformed("names a value id or lineage")
            return items

        return read

    def _groups(self, records: Sequence[Record], work: Work) -> list[list[Record]]:
        k = self.arity
        if k == 1:
            return [[record] for record in records]
        if len(records) < k:
            for record in records:
                work.drop(record, f"fewer than {k} records to put together")
            return []
        if self.group == "drawn":
            groups = []
            for i, record in enumerate(records):
                others = [*records[:i], *records[i + 1 :]]
                groups.append([record, *work.rng(record.id, "group").sample(others, k - 1)])
            return groups
        whole = len(records) - len(records) % k
        for record in records[whole:]:
            work.drop(record, f"left over: not {k} records")
        return [list(records[i : i + k]) for i in range(0, whole, k)]


def _mean(logprobs: Sequence[float], generator: str) -> float:
    if not logprobs:
        raise KDError(
            f"keep=best compares log-probabilities, and the generator {generator!r} gives none: "
            "set keep to first or list"
        )
    return sum(logprobs) / len(logprobs)
