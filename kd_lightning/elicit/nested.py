"""Steps inside a step: the filters of a growing pool, the scorer of best-of-n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind

Run = Callable[[Sequence[Record], Work], list[Record]]
"""What `Step.run` is."""


class Seen(Protocol):
    """What a step has read of the records before those that it judges."""

    def add(self, records: Sequence[Record]) -> None:
        """These are before them too."""
        ...

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        """What the step's own `run` would let pass of them behind all that were added."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A step that need not read again what was before its records."""

    def seen(self) -> Seen:
        """Nothing yet."""
        ...


def needs_of(
    steps: Sequence[Step], own: Mapping[str, frozenset[Kind]] | None = None
) -> dict[str, frozenset[Kind]]:
    """What several steps ask generators for, together."""
    found = dict(own or {})
    for step in steps:
        for name, kinds in step.needs().items():
            found[name] = found.get(name, frozenset()) | kinds
    return found


def through(steps: Sequence[Step], records: Sequence[Record], work: Work) -> list[Record]:
    """The records that all steps let pass, as the steps left them."""
    return _through([(step, step.run) for step in steps], records, work)


class Pool:
    """Records that grow by those which pass some steps behind them.

    The records that are there go through each step before the new ones (so that what resembles them
    falls), and are neither returned nor counted among the dropped. A step that remembers is told of
    each once; another one sees them all again each time.
    """

    def __init__(self, steps: Sequence[Step], records: Sequence[Record]) -> None:
        """Begin with records that pass no step."""
        self._records: list[Record] = []
        self._ids: set[str] = set()
        self._seen = [s.seen() if isinstance(s, Remembers) else None for s in steps]
        self._ways = [
            (step, seen.run if seen is not None else self._behind(step))
            for step, seen in zip(steps, self._seen, strict=True)
        ]
        self._join(records)

    def admit(self, records: Sequence[Record], work: Work) -> list[Record]:
        """New records that passed all steps, and are in the pool now."""
        passed = _through(self._ways, records, work)
        self._join(passed)
        return passed

    def _join(self, records: Sequence[Record]) -> None:
        self._records += records
        self._ids.update(record.id for record in records)
        for seen in self._seen:
            if seen is not None:
                seen.add(records)

    def _behind(self, step: Step) -> Run:
        def run(records: Sequence[Record], work: Work) -> list[Record]:
            passed = step.run([*self._records, *records], work)
            work.fallen[:] = [(r, reason) for r, reason in work.fallen if r.id not in self._ids]
            return [record for record in passed if record.id not in self._ids]

        return run


def _through(
    ways: Sequence[tuple[Step, Run]], records: Sequence[Record], work: Work
) -> list[Record]:
    kept = list(records)
    for i, (step, run) in enumerate(ways, 1):
        if not kept:
            break
        with work.inside(f"{i} {type(step).__name__}") as inner:
            kept = run(kept, inner)
    return kept
