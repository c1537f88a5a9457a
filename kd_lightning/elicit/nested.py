"""Steps inside a step: the filters of a growing pool, the scorer of best-of-n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind


def needs_of(
    steps: Sequence[Step], own: Mapping[str, frozenset[Kind]] | None = None
) -> dict[str, frozenset[Kind]]:
    """What several steps ask generators for, together."""
    found = dict(own or {})
    for step in steps:
        for name, kinds in step.needs().items():
            found[name] = found.get(name, frozenset()) | kinds
    return found


def through(
    steps: Sequence[Step], records: Sequence[Record], work: Work, pool: Sequence[Record] = ()
) -> list[Record]:
    """The new records that all steps let pass, as the steps left them.

    `pool` goes through each step before them (so that what resembles it falls), and is neither
    returned nor counted among the dropped.
    """
    kept = list(records)
    old = {record.id for record in pool}
    for i, step in enumerate(steps):
        if not kept:
            break
        with work.inside(f"{i + 1} {type(step).__name__}") as inner:
            passed = step.run([*pool, *kept], inner)
            inner.fallen[:] = [(r, reason) for r, reason in inner.fallen if r.id not in old]
        kept = [record for record in passed if record.id not in old]
    return kept
