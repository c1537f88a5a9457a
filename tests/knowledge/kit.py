"""A generator whose answers are known, and steps small enough to see through."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import BudgetError, Generator, Kind, Reply, Request, Usage
from kd_lightning.types import Completion, Prompt, Sampling, Signal


class Counting(Generator):
    """Says the prompt and the seed; fails where told, and writes down what it was asked."""

    offers = frozenset({Signal.TEXT})

    def __init__(
        self,
        name: str = "counting",
        licence: str | None = "apache-2.0",
        log: str | None = None,
        stop_after: int | None = None,
        refuses: str | None = None,
        seconds: float = 0.0,
        together: int = 3,
    ) -> None:
        self.name = name
        self.licence = licence
        self._log = log
        self._stop_after = stop_after
        self._refuses = refuses
        self._seconds = seconds
        self._together = together
        self._charged = (0, Usage())
        self._said = 0

    def charged(self, requests: int, usage: Usage) -> None:
        self._charged = (self._charged[0] + requests, self._charged[1] + usage)

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        waiting: list[tuple[int, Reply]] = []
        for number, request in enumerate(requests):
            if self._said == self._stop_after:
                yield waiting
                raise BudgetError("the budget of requests is reached")
            self._said += 1
            if self._log:
                self._write(f"{request.prompt.messages[-1].content}|{request.sampling.seed}\n")
            waiting.append((number, self._reply(request)))
            if len(waiting) == self._together:
                time.sleep(self._seconds)
                yield waiting[::-1]  # replies come as they are done
                waiting = []
        yield waiting

    def _write(self, line: str) -> None:
        assert self._log
        file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    def _reply(self, request: Request) -> Reply:
        text = request.prompt.messages[-1].content
        if self._refuses is not None and self._refuses in text:
            return Reply(failure="the generator refuses this")
        said = f"{text} -> {request.sampling.seed % 1000}"
        usage = Usage(len(text), len(said), 0.5)
        return Reply((Completion(said, (), True),), usage=usage)


class Answers(Step):
    """Asks once for each record."""

    def __init__(self, field: str = "answer", generator: str = "teacher") -> None:
        self.field = field
        self.generator = generator

    def needs(self):
        return {self.generator: frozenset({Kind.GENERATE})}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        asked = [
            Request(Kind.GENERATE, Prompt.user(r.text("prompt")), Sampling(seed=work.seed_of(r.id)))
            for r in records
        ]
        made = []
        for record, reply in zip(records, work.ask(self.generator, asked), strict=True):
            if reply.failure:
                work.drop(record, reply.failure)
            else:
                text = reply.completions[0].text
                made.append(record.changed(work.name, "counting", **{self.field: text}))
        return made


class Odd(Step):
    """Keeps every second record."""

    def __init__(self, keep: int = 0) -> None:
        self.keep = keep

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        for record in records[1 - self.keep :: 2]:
            work.drop(record, "of the other half")
        return list(records[self.keep :: 2])


def seeds(path: Path, count: int = 10) -> str:
    """A file of questions."""
    from tests.data import kit

    return kit.write(path, [{"prompt": f"question {i}", "id": f"q{i}"} for i in range(count)])
