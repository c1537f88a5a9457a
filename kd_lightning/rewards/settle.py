"""What becomes of answers that nobody could judge: their group takes no part."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def settle(rewards: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Rewards with nan in whole groups, the rows that are kept, and how many groups fell.

    A missing number is never filled in: an advantage or a comparison within a group of which one
    answer is unknown would be another's. Losses leave rows without a reward out, so that ranks stay
    in step although rows fall.

    Args:
        rewards: `[B]`; nan where nobody could tell.
        group: `[B]` numbers of the groups; None: each row is one.
    """
    missing = rewards.isnan()
    if group is None:
        return rewards, ~missing, int(missing.sum())
    together = group[:, None] == group[None, :]
    fallen = (together & missing[None, :]).any(1)
    dropped = int(torch.unique(group[fallen]).numel())
    return rewards.masked_fill(fallen, math.nan), ~fallen, dropped
