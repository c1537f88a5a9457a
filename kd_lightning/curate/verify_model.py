"""Answers judged by a model's way back, or by the skill's own grader."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kd_lightning.curate.check import Check, Item, Judged, Mode
from kd_lightning.curate.extract import Extract, same
from kd_lightning.curate.texts import between, text_of
from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.metrics.answers import token_f1
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.types import Prompt, Sampling

SAMPLING = Sampling(max_new_tokens=256)
"""How a way back is drawn where nothing else is said."""

_PLACE = re.compile(r"\{(\w+)\}")


class RoundTrip(Check):
    """Keep answers from which a generator finds the way back to what was asked.

    A translation is translated back, an instruction guessed from its answer, a question answered
    from the summary of its document; what comes back is compared with the field `to`.
    """

    def __init__(
        self,
        question: str = "{answer}\n\nWhich instruction does the text above follow? Write only it.",
        field: str = "answer",
        to: str = "prompt",
        generator: str = "teacher",
        extract: Extract | None = None,
        threshold: float = 0.5,
        sampling: Sampling = SAMPLING,
        mode: Mode = "filter",
        into: str = "scores",
    ) -> None:
        """Store the settings.

        Args:
            question: What is asked; `{answer}` is the text that is judged, `{name}` another field.
            field: The text that is judged, or a list of them.
            to: What has to come back.
            generator: Name of the generator that is asked.
            extract: How outcomes are read of both and compared as equal or not; None: the words
                that both share (token F1).
            threshold: F1 from which it came back.
            sampling: How the way back is drawn.
            mode: `filter`: wrong ones fall; `score`: the F1 is written down, all go on.
            into: Field of the scores.
        """
        if "{answer}" not in question:
            raise KDError("question must hold {answer}, the place of the text that is judged")
        between("threshold", threshold, 0, 1)
        self.question = question
        self.field = field
        self.to = to
        self.generator = generator
        self.extract = extract
        self.threshold = threshold
        self.sampling = sampling
        self.mode = mode
        self.into = into

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {self.generator: frozenset({Kind.GENERATE})}

    def lacks(self, record: Record) -> str:
        named = [n for n in _PLACE.findall(self.question) if n != "answer"]
        missing = [n for n in (self.to, *named) if not text_of(record, n).strip()]
        return f"no {missing[0]}" if missing else ""

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        requests = [
            Request(
                Kind.GENERATE,
                Prompt.user(self._asked(item)),
                replace(self.sampling, seed=work.seed_of(item.record.id, item.place)),
            )
            for item in items
        ]
        replies = work.ask(self.generator, requests)
        return [
            Judged(0.0, broken=f"no way back: {reply.failure}")
            if reply.failure
            else self._compared(reply.completions[0].text, text_of(item.record, self.to))
            for item, reply in zip(items, replies, strict=True)
        ]

    def _asked(self, item: Item) -> str:
        """Filled in one pass: what a field holds is not looked through for places again."""
        return _PLACE.sub(
            lambda m: item.text if m[1] == "answer" else text_of(item.record, m[1]), self.question
        )

    def _compared(self, back: str, wanted: str) -> Judged:
        if self.extract is None:
            score = token_f1(back, [wanted])
        else:
            a, b = self.extract.of(back), self.extract.of(wanted) or wanted
            score = float(a is not None and same(a, b))
        return Judged(score, "does not come back", back)


class Graded(Check):
    """Keep answers that the skill's own grader finds good enough."""

    def __init__(
        self,
        field: str = "answer",
        reference: str | None = "reference",
        gold: str = "answer",
        grade: str | None = None,
        threshold: float = 1.0,
        mode: Mode = "filter",
        into: str = "scores",
    ) -> None:
        """Store the settings.

        Args:
            field: The answer, or a list of them.
            reference: Field with the right answer; the skill reads it as its own field `gold`.
                None: the record holds that field already.
            gold: The skill's field of the right answer.
            grade: Which of the skill's grades; None: its headline, the first.
            threshold: Grade from which an answer is good enough, 0 to 1.
            mode: `filter`: wrong ones fall; `score`: the grade is written down, all go on.
            into: Field of the scores.
        """
        between("threshold", threshold, 0, 1)
        if reference is None and gold == field:
            raise KDError(
                f"the answers in {field!r} would be graded against themselves: name the field of "
                "the right answer in reference, or judge another field"
            )
        self.field = field
        self.reference = reference
        self.gold = gold
        self.grade = grade
        self.threshold = threshold
        self.mode = mode
        self.into = into

    def lacks(self, record: Record) -> str:
        name = self.gold if self.reference is None else self.reference
        return "" if record.get(name) not in (None, "", []) else f"no {name}"

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        if work.skill is None:
            raise KDError(f"step {work.name} grades with the skill: name one in `skill`")
        return [self._one(item, work.skill) for item in items]

    def _one(self, item: Item, skill: KDDataModule) -> Judged:
        values = dict(item.record.values)
        if self.reference is not None:
            values[self.gold] = values[self.reference]
        row = Row(
            values,
            place=f"record {item.record.id}",
            id=item.record.id,
            columns=skill.columns,
            aliases=skill.fields,
        )
        grades = skill.grade(skill.example(row), item.text)
        name = next(iter(grades)) if self.grade is None else self.grade
        if name not in grades:
            known = ", ".join(grades)
            raise KDError(f"{type(skill).__name__} has no grade {name!r}: use {known}")
        return Judged(grades[name], f"{name} below {self.threshold:g}")
