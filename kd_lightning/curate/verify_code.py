"""Programs that must pass tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_lightning.curate.check import Check, Item, Judged, Mode
from kd_lightning.curate.texts import at_least
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.security import sandbox

_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def code_of(text: str) -> str:
    """The program in an answer: its fenced blocks, or the whole where there is none."""
    blocks = _FENCED.findall(text)
    return "\n".join(blocks) if blocks else text


class UnitTests(Check):
    """Keep programs that pass the record's tests, run in the sandbox.

    What a failed program printed last is kept in score mode, for a step that asks for a repair.

    Source: as in Chen et al. 2023 (personalised distillation), arXiv 2310.18628.
    """

    def __init__(
        self,
        field: str = "answer",
        tests: str = "tests",
        setup: str = "setup",
        seconds: float = 5.0,
        memory_mb: int = 512,
        mode: Mode = "filter",
        into: str = "scores",
        detail: str = "errors",
        detail_chars: int = 2000,
        workers: int = 1,
    ) -> None:
        """Store the settings.

        Args:
            field: The program, or an answer with fenced blocks, or a list of them.
            tests: Field with the tests: a program, or a list of statements; it runs after.
            setup: Field with a program that runs before (imports); it may be missing.
            seconds: Time that one program has.
            memory_mb: Memory that one program has, in MiB.
            mode: `filter`: wrong ones fall; `score`: 1 and 0 are written down, all go on.
            into: Field of the scores.
            detail: score: field of what failed programs printed.
            detail_chars: score: how much of its end is kept.
            workers: Programs that run at the same time: no more than there are cores, since time
                is counted by the clock. It has no part in the settings that results depend on.
        """
        if seconds <= 0 or memory_mb <= 0:
            raise KDError("seconds and memory_mb must be above 0")
        at_least("workers", workers, 1)
        self.field = field
        self.tests = tests
        self.setup = setup
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.mode = mode
        self.into = into
        self.detail = detail
        self.detail_chars = detail_chars
        self.workers = workers

    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in super().settings().items() if k != "workers"}

    def lacks(self, record: Record) -> str:
        return "" if self._tests(record).strip() else f"no {self.tests}"

    def _tests(self, record: Record) -> str:
        value = record.get(self.tests, "")
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

    def judge(self, items: Sequence[Item], work: Work) -> list[Judged]:
        if not work.allow_code:
            raise KDError(
                f"step {work.name} would run code that a model wrote: set allow_code=true to allow "
                "it (it runs without network, files and environment, and with limits)"
            )
        limits = sandbox.Limits(seconds=self.seconds, memory_bytes=self.memory_mb * 2**20)
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda item: self._one(item, limits), items))

    def _one(self, item: Item, limits: sandbox.Limits) -> Judged:
        parts = (item.record.text(self.setup), code_of(item.text), self._tests(item.record))
        done = sandbox.run("\n".join(filter(None, parts)), allowed=True, limits=limits)
        if done.passed:
            return Judged(1.0)
        reason = {"failed": "tests failed"}.get(done.reason, f"tests {done.reason}")
        return Judged(0.0, reason, (done.output or done.reason)[-self.detail_chars :])
