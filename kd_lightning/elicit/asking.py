"""Questions put to a generator until their answers are in the form asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kd_lightning.elicit.parsers.base import Malformed
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import Work
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.types import Completion, Prompt, Sampling

SAMPLING = Sampling(max_new_tokens=512, temperature=0.7)
"""How answers are drawn where nothing is said."""

AGAIN = 0.5
"""The least temperature of a question that is put again: at 0 the same answer would come."""

CUT = "cut at the length limit"

ENOUGH = 50
"""Questions after which it is told whether a generator keeps to the form."""

FEWEST = 20
"""Of fewer questions no share is taken."""

Item = dict[str, Any]
"""What a parser made of an answer, or of a part of one."""


@dataclass(frozen=True)
class Question:
    """One thing to be answered."""

    key: str
    """Its seeds are drawn from this: the record, and the stage where a step has several."""
    prompt: Prompt
    """What is asked."""
    read: Callable[[str], list[Item]]
    """The parser; `Malformed` where the answer is none."""
    n: int = 1
    """How many answers."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, besides those of the sampling."""


@dataclass(frozen=True)
class Said:
    """One answer that could be read."""

    items: list[Item]
    """What the parser made of it."""
    by: str
    """Who gave it."""
    completion: Completion
    """As it came."""


@dataclass
class Heard:
    """The good answers to one question."""

    answers: list[Said] = field(default_factory=list)
    """At most as many as were asked for."""
    failure: str = ""
    """Why the last bad one was bad; '': there was none."""
    closed: bool = False
    """Whether the generator could not answer at all: it is not asked again."""

    @property
    def item(self) -> Item:
        """The first item of the first good answer."""
        return self.answers[0].items[0]

    @property
    def by(self) -> str:
        """Who gave the first good answer."""
        return self.answers[0].by


@dataclass(frozen=True)
class Manner:
    """How questions are put."""

    sampling: Sampling
    """How answers are drawn; the seed is each question's own."""
    attempts: int = 3
    """How often a question is put until it counts as failed."""
    allow_cut: bool = False
    """Whether an answer that was cut at the length limit counts."""
    logprobs: bool = False
    """Whether log-probabilities of the answers are wanted."""
    most_malformed: float = 1.0
    """Share of the questions without an answer in form at which the step stops."""

    def check(self, n: int, who: str) -> None:
        """Refuse what cannot work."""
        if self.attempts < 1 or n < 1:
            raise KDError(f"{who}: attempts and n must be at least 1")
        if not 0 <= self.most_malformed <= 1:
            raise KDError(f"{who}: most_malformed is a share from 0 to 1 (1: never stop)")
        if n > 1 and self.sampling.temperature == 0:
            raise KDError(
                f"{who}: {n} answers at temperature 0 are the same answer {n} times: set "
                "sampling.temperature above 0, or n to 1"
            )


def put(work: Work, generator: str, questions: Sequence[Question], manner: Manner) -> list[Heard]:
    """Ask all questions in one round, then those again whose answers were malformed.

    Where a limit on malformed answers is set, some go ahead of the others and are looked at first.
    """
    first = ENOUGH if manner.most_malformed < 1 else len(questions)
    heard: list[Heard] = []
    for part in (questions[:first], questions[first:]):
        heard += _rounds(work, generator, part, manner)
        _refuse(work, generator, heard, manner)
    for question, said in zip(questions, heard, strict=True):
        if said.answers and len(said.answers) < question.n:
            work.count("answers missing", question.n - len(said.answers))
    return heard


def _refuse(work: Work, generator: str, heard: Sequence[Heard], manner: Manner) -> None:
    """Stop where too many questions came to nothing: their records are no fair part of all."""
    lost = [said.failure for said in heard if not said.answers and not said.closed]
    if len(heard) < FEWEST or len(lost) <= manner.most_malformed * len(heard):
        return
    often = max(set(lost), key=lost.count)
    raise KDError(
        f"{work.name}: {len(lost):,} of {len(heard):,} questions to {generator!r} had no answer in "
        f"form (most often {often}), more than most_malformed = {manner.most_malformed:g}: "
        "choose a generator that keeps to the form, mend the template, or raise most_malformed"
    )


def _rounds(
    work: Work, generator: str, questions: Sequence[Question], manner: Manner
) -> list[Heard]:
    """Ask until all is answered or the attempts are used up."""
    heard = [Heard() for _ in questions]
    waiting = list(range(len(questions)))
    for attempt in range(manner.attempts):
        if not waiting:
            break
        requests = [
            _request(work, questions[i], questions[i].n - len(heard[i].answers), attempt, manner)
            for i in waiting
        ]
        for i, reply in zip(waiting, work.ask(generator, requests), strict=True):
            if reply.failure:
                heard[i].failure, heard[i].closed = reply.failure, True
            by = reply.sources or (reply.by or generator,) * len(reply.completions)
            for completion, name in zip(reply.completions, by, strict=True):
                _hear(heard[i], questions[i], completion, name, manner, work)
        waiting = [
            i for i in waiting if not heard[i].closed and len(heard[i].answers) < questions[i].n
        ]
    return heard


def _request(work: Work, question: Question, n: int, attempt: int, manner: Manner) -> Request:
    sampling = replace(
        manner.sampling,
        seed=work.seed_of(question.key, attempt),
        stop=tuple(dict.fromkeys((*manner.sampling.stop, *question.stop))),
    )
    if attempt:
        sampling = replace(sampling, temperature=max(AGAIN, sampling.temperature))
    return Request(Kind.GENERATE, question.prompt, sampling, n, logprobs=manner.logprobs)


def _hear(
    heard: Heard, question: Question, completion: Completion, by: str, manner: Manner, work: Work
) -> None:
    work.count("answers")
    try:
        if not (completion.finished or manner.allow_cut):
            raise Malformed(CUT)
        items = question.read(completion.text)
        heard.answers.append(Said(items, by, completion))
    except Malformed as error:
        heard.failure = f"malformed: {error}"
        work.count("malformed answers")
