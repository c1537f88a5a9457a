"""A local model as a generator: requests in, answers and log-probabilities out, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from kd_lightning.errors import KDError
from kd_lightning.models import drawing, scoring
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw
from kd_lightning.models.modes import evaluating
from kd_lightning.models.scoring import Row
from kd_lightning.teachers.generator import Kind, Reply, Request, TokenLogprobs, Usage
from kd_lightning.teachers.wording import Wording
from kd_lightning.types import Completion

WINDOW = 8
"""Batches' worth of requests that are sorted by length together."""


@dataclass
class _Task:
    """A request that is being answered."""

    number: int
    request: Request
    prompt: tuple[int, ...]
    texts: list[tuple[int, ...]]
    """Ids to be scored: of given texts or options, or of what was drawn."""
    draws: int = 0
    """Answers that are still to come."""
    rows: int = 0
    """Rows that are still to be scored."""
    drawn: dict[int, tuple[tuple[int, ...], bool]] = field(default_factory=dict)
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    """(text, token) to its log-probability."""


class Speaker:
    """Answers requests with a model; what it says to one does not depend on the others.

    Each request draws by a seed of its own and ends at its own limit; rows of other lengths beside
    it change a logit by rounding only. Same requests in the same order: the same to the last bit.
    """

    def __init__(
        self,
        model: CausalLM,
        rows: int = 64,
        batch_tokens: int = 32768,
        template: str = "auto",
        arguments: Mapping[str, Any] | None = None,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """What answers, and how much at once.

        Args:
            model: In place, in one piece.
            rows: Answers at once.
            batch_tokens: Tokens at once, padding and the room for answers included.
            template: See the data modules.
            arguments: Further ones for the template.
            around: Holds while the model computes.
        """
        if model.placement is not None:
            raise KDError(
                "a model that is sharded over processes does not answer requests: load the teacher "
                "whole, in one process (or ask it through a server)"
            )
        self.model, self.rows, self.batch_tokens = model, rows, batch_tokens
        self.wording = Wording(model.tokenizer, template, arguments)
        self.around = around
        config = model.transformer.config.get_text_config()
        self.limit: int | None = getattr(config, "max_position_embeddings", None)

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        """Answers as they are done, the longest of some batches' worth of requests first."""
        numbered = enumerate(requests)
        while window := list(islice(numbered, self.rows * WINDOW)):
            tasks, failed = [], []
            for number, request in window:
                try:
                    tasks.append(self._task(number, request))
                except KDError as error:
                    failed.append((number, Reply(failure=str(error))))
            if failed:
                yield failed
            yield from self._answered(tasks)

    def _task(self, number: int, request: Request) -> _Task:
        prompt = self.wording.prompt(request.prompt)
        texts = [self.wording.answer(request.prompt, text) for text in request.texts]
        if request.kind is Kind.GENERATE and request.sampling.max_new_tokens < 1:
            raise KDError("an answer of no tokens is asked for: raise sampling.max_new_tokens")
        if request.kind is Kind.CHOICES and not all(texts):
            raise KDError("an option is empty: its probability means nothing; write a text")
        most = len(prompt) + max((len(ids) for ids in texts), default=1)
        if self.limit is not None and most > self.limit:
            raise KDError(
                f"it does not fit into the model's {self.limit} positions: shorten the prompt"
            )
        return _Task(number, request, prompt, texts)

    def _answered(self, tasks: Sequence[_Task]) -> Iterator[list[tuple[int, Reply]]]:
        draws = [(task, draw) for task in tasks for draw in self._draws(task)]
        for task, _ in draws:
            task.draws += 1
        scored = [t for t in tasks if t.request.kind is not Kind.GENERATE or t.request.logprobs]
        silent = [t for t in tasks if not t.draws and t not in scored]  # n=0: nothing is asked
        if silent:
            yield [(task.number, self._reply(task)) for task in silent]
        lengths = [(len(draw.prompt), draw.room) for _, draw in draws]
        for chosen in self._batches(lengths):
            made = self._on_model(drawing.draw_all, [draws[i][1] for i in chosen])
            done = []
            for i, found in zip(chosen, made, strict=True):
                task, draw = draws[i]
                task.drawn[draw.number] = found
                task.draws -= 1
                if not task.draws and not task.request.logprobs:
                    done.append((task.number, self._reply(task)))
            if done:
                yield done
        yield from self._scored(scored)

    def _draws(self, task: _Task) -> list[Draw]:
        if task.request.kind is not Kind.GENERATE:
            return []
        how = task.request.sampling
        room = how.max_new_tokens
        if self.limit is not None:
            room = min(room, self.limit - len(task.prompt))
        different = task.request.n if how.temperature > 0 else min(1, task.request.n)
        return [Draw(task.prompt, how, room, number) for number in range(different)]

    def _scored(self, tasks: Sequence[_Task]) -> Iterator[list[tuple[int, Reply]]]:
        asked: list[tuple[_Task, Row, list[tuple[int, int]]]] = []
        for task in tasks:
            if task.request.kind is Kind.GENERATE:
                task.texts = [task.drawn[i][0] for i in sorted(task.drawn)]
            new = [(task, row, names) for row, names in _rows(task)]
            task.rows = len(new)
            asked += new
        empty = [task for task in tasks if not task.rows]
        if empty:
            yield [(task.number, self._reply(task)) for task in empty]
        for chosen in self._batches([(len(row.ids), 0) for _, row, _ in asked]):
            told = self._on_model(scoring.logprobs, [asked[i][1] for i in chosen])
            done = []
            for i, values in zip(chosen, told, strict=True):
                task, _, names = asked[i]
                task.scores.update(zip(names, values, strict=True))
                task.rows -= 1
                if not task.rows:
                    done.append((task.number, self._reply(task)))
            if done:
                yield done

    def _batches(self, lengths: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Numbers of what goes together, the longest first; (length, room for more) of each."""
        order = sorted(range(len(lengths)), key=lambda i: (-sum(lengths[i]), -lengths[i][0], i))
        batch: list[int] = []
        width = room = 0
        for i in order:
            wider, further = max(width, lengths[i][0]), max(room, lengths[i][1])
            total = wider + further
            over = self.limit is not None and max(lengths[i][0], width) + further > self.limit
            full = len(batch) == self.rows or total * (len(batch) + 1) > self.batch_tokens
            if batch and (over or full):
                yield batch
                batch, wider, further = [], *lengths[i]
            batch.append(i)
            width, room = wider, further
        if batch:
            yield batch

    def _on_model(self, compute: Callable[[CausalLM, Any], Any], batch: Any) -> Any:
        try:
            with self.around(), evaluating(self.model):
                return compute(self.model, batch)
        except torch.OutOfMemoryError as error:
            raise KDError(
                f"{len(batch)} rows do not fit on {self.model.device}: lower the generator's "
                f"`batch_tokens` ({self.batch_tokens}) or `rows` ({self.rows})"
            ) from error

    def _reply(self, task: _Task) -> Reply:
        request = task.request
        values = [
            tuple(task.scores[i, j] for j in range(len(ids))) for i, ids in enumerate(task.texts)
        ]
        if request.kind is Kind.CHOICES:
            return Reply(choices=tuple(map(sum, values)), usage=Usage(_length(task)))
        if request.kind is Kind.SCORE:
            scores = tuple(
                TokenLogprobs(self.wording.pieces(task.prompt, ids), row)
                for ids, row in zip(task.texts, values, strict=True)
            )
            return Reply(scores=scores, usage=Usage(_length(task)))
        made = [
            self._completion(task, *task.drawn[i], values[i] if request.logprobs else ())
            for i in sorted(task.drawn)
        ]
        if request.sampling.temperature == 0:
            made *= request.n  # greedy answers are one and the same
        tokens = sum(len(ids) for ids, _ in task.drawn.values())
        return Reply(tuple(made), usage=Usage(len(task.prompt), tokens))

    def _completion(
        self, task: _Task, ids: tuple[int, ...], ended: bool, logprobs: tuple[float, ...]
    ) -> Completion:
        text = self.wording.text(task.prompt, ids)
        found = [text.find(stop) for stop in task.request.sampling.stop]
        text = text[: min((at for at in found if at >= 0), default=len(text))]
        if not task.request.prompt.plain:
            text = text.strip()
        return Completion(text, ids, ended, logprobs)


def _length(task: _Task) -> int:
    return len(task.prompt) + sum(map(len, task.texts))


def _rows(task: _Task) -> list[tuple[Row, list[tuple[int, int]]]]:
    """What to compute for a task's texts; those that differ in the last token share a row."""
    start = len(task.prompt) - 1
    heads: dict[tuple[int, ...], list[int]] = {}
    for number, ids in enumerate(task.texts):
        if ids:
            heads.setdefault(ids[:-1], []).append(number)
    rows = []
    for head, numbers in heads.items():
        names = [(n, j) for n in numbers for j in range(len(task.texts[n]))]
        wanted = [(start + j, task.texts[n][j]) for n, j in names]
        rows.append((Row((*task.prompt, *head), tuple(wanted)), names))
    return rows
