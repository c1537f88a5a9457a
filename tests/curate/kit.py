"""Records, a place to work, and a generator of a few rules for the tests of curators."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.teachers.generator import Generator, Kind, Reply, TokenLogprobs
from kd_lightning.teachers.journal import Journal
from kd_lightning.types import Completion, Signal


def records(*values: dict) -> list[Record]:
    """Records a, b, c ..."""
    return [Record(f"r{i}", value) for i, value in enumerate(values)]


def texts(*told: str, field: str = "prompt") -> list[Record]:
    """Records with one text each."""
    return records(*({field: text} for text in told))


def work(seed: int = 0, folder: Path | None = None, **more) -> Work:
    """What a step works with; generators by keyword."""
    named = {k: more.pop(k) for k in list(more) if isinstance(more[k], Generator)}
    place = folder or Path(mkdtemp())
    return Work("curator", seed, named, Journal(place / "journal.jsonl"), **more)


def ids(found) -> list[str]:
    return [record.id for record in found]


def ran(step, given, at: Work | None = None):
    """Ids that stay, and reason to ids that fall."""
    at = at or work()
    kept = step.run(given, at)
    fallen: dict[str, list[str]] = {}
    for record, reason in at.fallen:
        fallen.setdefault(reason, []).append(record.id)
    assert len(at.fallen) == sum(at.tally.dropped.values())
    return ids(kept), fallen


class Rule(Generator):
    """Says what a function makes of the last turn; gives a word the probability of another."""

    offers = frozenset({Signal.TEXT, Signal.LOGPROB})
    name = "rule"

    def __init__(
        self,
        says: Callable[[str], str] = str.upper,
        likely: Callable[[str, str], float] = lambda prompt, word: 0.5,
        fails: Callable[[str], str] = lambda prompt: "",
    ) -> None:
        self.says, self.likely, self.fails = says, likely, fails
        self.asked = []

    def replies(self, requests):
        for i, request in enumerate(requests):
            self.asked.append(request)
            prompt = request.prompt.messages[-1].content
            yield [(i, self._one(request, prompt))]

    def _one(self, request, prompt: str) -> Reply:
        if failure := self.fails(prompt):
            return Reply(failure=failure)
        if request.kind is Kind.GENERATE:
            return Reply((Completion(self.says(prompt), (), True),) * request.n)
        if request.kind is Kind.CHOICES:
            return Reply(choices=tuple(math.log(self.likely(prompt, t)) for t in request.texts))
        told = []
        for text in request.texts:
            words = tuple(text.split())
            told.append(
                TokenLogprobs(words, tuple(math.log(self.likely(prompt, w)) for w in words))
            )
        return Reply(scores=tuple(told))
