"""What is asked in a step, what is answered, and the batch that is made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kd_lightning.data.collate import Collate, Filler
from kd_lightning.data.encoding import Encoded
from kd_lightning.types import IGNORE, Batch, Completion, Example, Source


@dataclass(frozen=True)
class Answer:
    """A prompt with one answer to it, whoever gave it."""

    ids: tuple[int, ...]
    """Of prompt and answer."""
    weights: tuple[float, ...]
    """How much predicting each of them counts."""
    start: int
    """Where the answer begins."""
    source: Source
    """Whose words they are."""
    completion: Completion
    """The answer as a grader sees it."""
    skill: int
    """Index into the data module's skills."""
    example: Example | None = None
    """What it answers, for graders."""
    behaviour: tuple[float, ...] = ()
    """log p of each answer token of the policy that drew them; (): not known."""


@dataclass(frozen=True)
class Asked:
    """A row of the step: its prompt, and the answer that the data has."""

    name: str
    """The same on whichever rank the row is; random numbers follow from it."""
    prompt: tuple[int, ...]
    """Ids before the last answer; (): nothing is learned from the row."""
    given: Answer
    """The row as it is."""

    @property
    def document(self) -> bool:
        """Whether it is a text without roles."""
        return self.given.example is not None and self.given.example.plain

    def cut(self, given: int) -> tuple[int, ...]:
        """The prompt; of a document, its first `given` tokens behind those of every prompt."""
        if not self.document or not given:
            return self.prompt
        return self.given.ids[: min(len(self.prompt) + given, len(self.given.ids) - 1)]

    def answer(
        self,
        prompt: tuple[int, ...],
        completion: Completion,
        source: Source,
        behaviour: tuple[float, ...] = (),
        counted: bool = True,
    ) -> Answer:
        """Another answer to it; not `counted`: nothing is learned from it."""
        tokens = completion.tokens
        weights = (0.0,) * len(prompt) + (float(counted),) * len(tokens)
        given = self.given
        return Answer(
            prompt + tokens, weights, len(prompt), source, completion, given.skill, given.example,
            behaviour,
        )  # fmt: skip


def asked(batch: Batch) -> list[Asked]:
    """The rows of a batch without its fillers."""
    here = batch.to("cpu")
    known = len(here.examples) if here.examples else len(here)
    return [_asked(here, row) for row in range(known)]


def _asked(batch: Batch, row: int) -> Asked:
    length = batch.lengths[row]
    ids: list[int] = batch.input_ids[row, :length].tolist()
    targets: list[int] = batch.targets[row, :length].tolist()
    weights: list[float] = [0.0, *batch.weights[row, :length].tolist()]
    if length and targets[-1] != IGNORE:
        ids.append(targets[-1])
    else:  # nobody learns the last token, and a batch does not hold it
        weights = weights[:-1]
    learned = [t for t, target in enumerate(targets) if target != IGNORE]
    start = len(ids)
    if learned:  # the last answer: the last stretch of learned tokens
        first = learned[-1]
        while first and targets[first - 1] != IGNORE:
            first -= 1
        start = first + 1
    example = batch.examples[row] if batch.examples else None
    text = "" if example is None else example.answer
    completion = Completion(text, tuple(ids[start:]), True)
    source, skill = Source(int(batch.source[row])), int(batch.skill[row])
    given = Answer(tuple(ids), tuple(weights), start, source, completion, skill, example)
    id = batch.ids[row] if batch.ids else ""
    digest = hashlib.blake2b(json.dumps([id, skill, ids]).encode(), digest_size=12).hexdigest()
    return Asked(digest, tuple(ids[:start]) if learned else (), given)


def together(
    batch: Batch, answers: Sequence[Sequence[Answer]], pad: int, with_behaviour: bool
) -> Batch:
    """The answers as a batch, those to one prompt side by side; fillers stay behind them.

    Args:
        batch: Whose rows were answered.
        answers: To each of `asked(batch)`.
        pad: Id behind a row's end.
        with_behaviour: Whether every drawn answer comes with its log-probabilities.
    """
    flat = [(number, answer) for number, each in enumerate(answers) for answer in each]
    rows: list[Encoded | Filler] = [_encoded(a, batch.ids[n] if batch.ids else "") for n, a in flat]
    fillers = len(batch) - len(answers)
    if fillers or not rows:
        rows += [_filler(pad)] * max(1, fillers)
    made = Collate(pad, {})(rows)
    groups = [number for number, _ in flat]
    groups += range(len(answers), len(answers) + len(rows) - len(flat))
    skills = [a.skill for _, a in flat] + [0] * (len(rows) - len(flat))
    return made.replace(
        skill=torch.tensor(skills),
        group=torch.tensor(groups),
        examples=tuple(a.example for _, a in flat if a.example is not None),
        answers=tuple(a.completion for _, a in flat),
        behaviour=placed(made, [(a.start, a.behaviour) for _, a in flat])
        if with_behaviour
        else None,
        shared=_shared(flat, len(rows)),
        lengths=tuple(len(row.row if isinstance(row, Filler) else row) - 1 for row in rows),
    ).to(batch.input_ids.device)


def _encoded(answer: Answer, id: str) -> Encoded:
    example = answer.example or Example(id, ())
    example = replace(example, source=answer.source)
    weights = np.asarray(answer.weights, np.float32)
    return Encoded(example, np.asarray(answer.ids, np.int32), weights)


def _filler(pad: int) -> Filler:
    ids = np.asarray([pad, pad], np.int32)
    return Filler(Encoded(Example("", ()), ids, np.zeros(2, np.float32)))


def placed(batch: Batch, told: Sequence[tuple[int, Sequence[float]]]) -> torch.Tensor:
    """Numbers of each row's answer, which begins at `start`: `[B, T]` float32; 0 elsewhere."""
    found = torch.zeros(batch.targets.shape)
    for row, (start, numbers) in enumerate(told):
        found[row, start - 1 : start - 1 + len(numbers)] = torch.tensor(numbers)
    return found


def _shared(flat: Sequence[tuple[int, Answer]], rows: int) -> tuple[int, ...]:
    """How many leading tokens each row has in common with the one above, of the same prompt."""
    found = [0] * rows
    for row in range(1, len(flat)):
        (before, above), (number, answer) = flat[row - 1], flat[row]
        same = answer.ids[: answer.start] == above.ids[: above.start]
        if number == before and same:
            found[row] = answer.start
    return tuple(found)
