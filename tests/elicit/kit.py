"""A generator that follows a rule, records, and a run of one step."""

from __future__ import annotations

import json
from pathlib import Path

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.teachers.generator import Generator, Kind, Reply
from kd_lightning.teachers.journal import Journal
from kd_lightning.types import Completion, Signal

TEMPLATES = Path("kd_lightning/elicit/templates")


class Stopped(Exception):
    """The process ends here."""


class Rule(Generator):
    """Says what a function of the request says: a text, or a list of `n`; None: a failure.

    A text that ends with … was cut at the length limit. `choices(request)` gives log-probabilities.
    Raises `Stopped` before reply number `dies`.
    """

    offers = frozenset({Signal.TEXT, Signal.LOGPROB})

    def __init__(self, rule=None, choices=None, name="rule", dies=None, group=1):
        self.rule = rule
        self.choices = choices
        self.name = name
        self.dies = dies
        self.group = group
        self.asked = []

    def replies(self, requests):
        for i, request in enumerate(requests):
            if self.dies is not None and len(self.asked) >= self.dies:
                raise Stopped
            self.asked.append(request)
            yield [(i, self._reply(request))]

    def _reply(self, request):
        if request.kind is Kind.CHOICES:
            return Reply(choices=tuple(self.choices(request)))
        told = self.rule(request)
        if told is None:
            return Reply(failure="refused by the rule")
        texts = [told] * request.n if isinstance(told, str) else told
        return Reply(completions=tuple(said(text, request) for text in texts))


def said(text, request):
    logprobs = (-float(len(text)),) if request.logprobs else ()
    return Completion(text.removesuffix("…"), (1,), not text.endswith("…"), logprobs)


def last(request):
    """The text of the last turn."""
    return request.prompt.messages[-1].content


def whole(request):
    """All turns as one text."""
    return "\n".join(message.content for message in request.prompt.messages)


def records(*values, **common):
    """Records r0, r1, …; texts are prompts."""
    told = [v if isinstance(v, dict) else {"prompt": v} for v in values]
    return [Record(f"r{i}", {**common, **v}) for i, v in enumerate(told)]


def work_of(folder, seed=0, **generators):
    return Work("step", seed, generators, Journal(Path(folder) / "journal.jsonl"))


def run(step, rows, folder, seed=0, **generators):
    """What a step makes, and its work; what it made and says of itself must be JSON."""
    work = work_of(folder, seed, **generators)
    json.dumps(step.settings())
    made = step.run(rows, work)
    for record in made:
        json.dumps(record.as_row())
    ids = [record.id for record in made]
    assert len(set(ids)) == len(ids)
    work.journal.close()
    return made, work


def file(folder, text, name="own.jinja"):
    """A template of the user's."""
    path = Path(folder) / name
    path.write_text(text, encoding="utf-8")
    return str(path)
