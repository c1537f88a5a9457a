"""Rows to a batch: the causal shift, the masks and the padding exist here and only here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.data.encoding import Encoded
from kd_lightning.types import IGNORE, Batch


@dataclass(frozen=True)
class Filler:
    """A copy of a row from which nothing is learned; keeps ranks in step."""

    row: Encoded


@dataclass(frozen=True)
class Collate:
    """Right-padded rows; position t holds token t and must predict token t + 1.

    The last token of a row is a target only. Masks come from lengths and weights, never from
    comparing ids with the padding id, which may be the end-of-text id. A filler has an empty name,
    no example and nothing to learn, and stands behind the real rows. Where some rows are of a group
    or have a reward, every row gets a number of its group, and a reward (nan without one).
    """

    pad: int
    """Id in the places behind a row's end; never attended, never learned."""
    skills: Mapping[str, int]
    """Skill name to its index."""

    def __call__(self, rows: Sequence[Encoded | Filler]) -> Batch:
        pairs = [(r.row, True) if isinstance(r, Filler) else (r, False) for r in rows]
        pairs.sort(key=lambda pair: pair[1])
        width = max(1, *(len(row) - 1 for row, _ in pairs))
        shape = (len(pairs), width)
        input_ids = torch.full(shape, self.pad, dtype=torch.int64)
        attention = torch.zeros(shape, dtype=torch.int64)
        targets = torch.full(shape, IGNORE, dtype=torch.int64)
        weights = torch.zeros(shape, dtype=torch.float32)
        for i, (row, filler) in enumerate(pairs):
            length = len(row) - 1
            ids = torch.from_numpy(row.ids).long()
            input_ids[i, :length] = ids[:-1]
            attention[i, :length] = 1
            if not filler:
                weight = torch.from_numpy(row.weights)[1:]
                weights[i, :length] = weight
                targets[i, :length] = torch.where(weight != 0, ids[1:], IGNORE)
        group, reward = _judged(pairs)
        return Batch(
            input_ids=input_ids,
            attention_mask=attention,
            targets=targets,
            weights=weights,
            source=torch.tensor([int(row.example.source) for row, _ in pairs]),
            skill=torch.tensor([self.skills.get(row.example.skill, 0) for row, _ in pairs]),
            ids=tuple("" if filler else row.example.id for row, filler in pairs),
            examples=tuple(row.example for row, filler in pairs if not filler),
            keys=tuple(b"" if filler else row.key for row, filler in pairs),
            group=group,
            reward=reward,
        )


def _judged(pairs: Sequence[tuple[Encoded, bool]]) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of the groups and rewards; None where no row has any. A filler is a group alone."""
    if all(row.group is None and row.reward is None for row, _ in pairs):
        return None, None
    numbers: list[int] = []
    for i, (row, filler) in enumerate(pairs):
        before = pairs[i - 1] if i else None
        same = before is not None and row.group is not None and row.group == before[0].group
        numbers.append(numbers[-1] + (not same or filler) if i else 0)
    rewards = [math.nan if filler or row.reward is None else row.reward for row, filler in pairs]
    return torch.tensor(numbers), torch.tensor(rewards, dtype=torch.float32)
