"""Which encoded rows stay together: the answers to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kd_lightning.data.encoding import Encoded


def units(rows: Sequence[Encoded]) -> list[range]:
    """Places of the rows that are dealt out together: neighbours of one group, or a row alone."""
    starts = [
        i
        for i, row in enumerate(rows)
        if i == 0 or row.group is None or row.group != rows[i - 1].group
    ]
    return [range(a, b) for a, b in pairwise([*starts, len(rows)])]
