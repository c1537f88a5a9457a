"""Who is better than whom: the answers to one prompt and their rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import spoken
from kd_lightning.types import Batch


@dataclass(frozen=True)
class Ranks:
    """The answers of a batch in their groups. Known before any forward; no gradient."""

    group: Tensor  # [B] int64
    reward: Tensor  # [B] float; 0 where nobody judged
    judged: Tensor  # [B] bool: has words and a reward
    unjudged: Tensor  # [B] bool: has words and no reward (nan)

    @classmethod
    def of(cls, batch: Batch, grouped: bool, demanded: bool) -> Ranks:
        """Those of a batch.

        Args:
            batch: Without `group`, every row is a group of its own.
            grouped: Whether such a batch is refused.
            demanded: Whether a batch without what is needed is refused at all.
        """
        if demanded and batch.reward is None:
            raise KDError(
                "a loss on judged answers needs a reward for each row of the batch: give it "
                "answers with rewards (a rollout, ranked data), or use a loss on words"
            )
        if demanded and grouped and batch.group is None:
            raise KDError(
                "a loss that compares answers needs to know which belong together: give each row "
                "of the batch the number of its group"
            )
        rows, device = len(batch), batch.targets.device
        reward = torch.full((rows,), torch.nan, device=device)
        reward = reward if batch.reward is None else batch.reward
        group = torch.arange(rows, device=device) if batch.group is None else batch.group
        said = spoken(batch).any(1)
        known = ~reward.isnan()
        return cls(group, reward.nan_to_num(0.0), said & known, said & ~known)

    @cached_property
    def together(self) -> Tensor:
        """Whether two rows answer one prompt, `[B, B]` bool."""
        return self.group[:, None] == self.group[None, :]

    @cached_property
    def better(self) -> Tensor:
        """Whether the row (first index) is better than the other (second), `[B, B]` bool."""
        both = self.judged[:, None] & self.judged[None, :]
        return self.together & both & (self.reward[:, None] > self.reward[None, :])

    @cached_property
    def gap(self) -> Tensor:
        """By how much the row's reward is larger than the other's, `[B, B]`."""
        return self.reward[:, None] - self.reward[None, :]

    @cached_property
    def best(self) -> Tensor:
        """The first of the best answers of each group that has any judged one, `[B]` bool."""
        place = torch.arange(len(self.group), device=self.group.device)
        both = self.together & self.judged[None, :]
        level = self.reward[:, None] == self.reward[None, :]
        beaten = both & ((self.gap < 0) | (level & (place[None, :] < place[:, None])))
        return self.judged & ~beaten.any(1)

    @cached_property
    def question(self) -> Tensor:
        """The row of each judged row's group that nobody judged, `[B]`; -1: none or several.

        Rows that are not judged point to themselves.
        """
        asking = self.together & self.unjudged[None, :]
        found = torch.where(asking.sum(1) == 1, asking.int().argmax(1), -1)
        return torch.where(self.judged, found, torch.arange(len(found), device=found.device))

    def in_group(self, values: Tensor) -> Tensor:
        """Sum of the rows' values `[B]` over each row's group, `[B]`."""
        return self.together.to(values.dtype) @ values

    @cached_property
    def compared(self) -> Tensor:
        """How many groups have an answer that is better than another, `[]` float32."""
        pairs = self.in_group(self.better.sum(1).float())
        return (self.best & (pairs > 0)).sum().float()
