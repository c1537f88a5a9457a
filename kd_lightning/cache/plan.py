"""Which rows go into which file, in which batches: known before the first forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kd_lightning.data.encoding import Encoded


def unique(splits: Iterable[Sequence[Encoded]]) -> list[Encoded]:
    """Rows with something to learn, in the order of splits and rows, each key once."""
    found: dict[bytes, Encoded] = {}
    for rows in splits:
        for row in rows:
            if row.answered:
                found.setdefault(row.key, row)
    return list(found.values())


def shards(rows: Sequence[Encoded], tokens: int) -> list[list[Encoded]]:
    """Stretches of at most `tokens` counted tokens; a row with more has a file of its own."""
    found: list[list[Encoded]] = []
    held = 0
    for row in rows:
        if not found or held + row.answered > tokens:
            found.append([])
            held = 0
        found[-1].append(row)
        held += row.answered
    return found


def batches(rows: Sequence[Encoded], tokens: int) -> list[list[int]]:
    """Places in `rows`, longest first, in batches of at most `tokens` padded tokens.

    A function of the rows of one file alone: so what a run that goes on computes is what an
    undisturbed one does, down to the rounding.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    found: list[list[int]] = []
    for i in order:
        if not found or (len(found[-1]) + 1) * (len(rows[found[-1][0]]) - 1) > tokens:
            found.append([])
        found[-1].append(i)
    return found
