"""The rewards of a step's answers, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.rewards.base import Reward
from kd_lightning.rewards.settle import settle
from kd_lightning.types import Batch


class Judging:
    """Puts a reward's numbers into batches of answers."""

    def __init__(self, reward: Reward) -> None:
        """Store the settings.

        Args:
            reward: Who judges.
        """
        self.reward = reward
        self._sums = torch.zeros(4, dtype=torch.float64)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its rewards; nan: fillers, and groups of which one answer has none."""
        texts = [answer.text for answer in batch.answers]
        if not batch.answers:  # the data's own words
            texts = [example.answer for example in batch.examples]
        found, known = self.reward(batch, texts), len(texts)
        group = None if batch.group is None else batch.group[:known]
        rewards, kept, dropped = settle(found[:known], group)
        settled = torch.full_like(found, math.nan)
        settled[:known] = rewards
        judged = rewards[kept].double().cpu()
        values = (len(judged), float(judged.sum()), float(judged.square().sum()), dropped)
        self._sums = torch.tensor(values, dtype=torch.float64)
        return batch.replace(reward=settled)

    def table(
        self, over_ranks: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, float]:
        """What is logged of the last step's rewards, the same on all ranks; a collective call."""
        judged, total, squares, dropped = over_ranks({"sums": self._sums})["sums"].tolist()
        mean = total / judged if judged else math.nan
        spread = max(0.0, squares / judged - mean**2) ** 0.5 if judged else math.nan
        table = {"": mean, "/std": spread, "/dropped_groups": dropped}
        table |= {f"/{name}": value for name, value in _added_up(self.reward.logs()).items()}
        return {f"train/reward{name}": value for name, value in table.items()}


def _added_up(counts: dict[str, float]) -> dict[str, float]:
    """Counts over all ranks, whichever names each has; a collective call."""
    parts = [counts]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, counts)
    names = sorted({name for part in parts for name in part})
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
