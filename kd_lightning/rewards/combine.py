"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Asked, Reward
from kd_lightning.types import Batch


@dataclass
class Part:
    """One of several rewards."""

    reward: Reward
    """What it is."""
    weight: float = 1.0
    """sum, quantile: its factor; product: its exponent; min: not read."""


class Combine(Reward):
    r"""A weighted sum, a product, the least, or the sum of ranks.

    `quantile`: every reward is replaced by the share of the group's other answers that are worse
    (a tie counts half), which makes rewards of different scales alike. Where one reward is nan, so
    is the whole: nothing is made of the others alone.

    Source: products of an answer's and an instruction's reward: Luo et al. 2023 (WizardMath),
    arXiv 2308.09583.
    """

    def __init__(
        self,
        rewards: dict[str, Part],
        how: Literal["sum", "product", "min", "quantile"] = "sum",
    ) -> None:
        """Store the settings.

        Args:
            rewards: Name to reward and weight; the names stand in the log.
            how: sum: weighted; product: each to the power of its weight, for rewards that are not
                negative; min: the least; quantile: weighted sum of ranks within the group.
        """
        super().__init__()
        self.rewards = rewards
        self.how = how
        if not rewards:
            raise KDError("Combine needs rewards: write rewards: {<name>: {reward: <class>}}")

    @property
    def parts(self) -> tuple[Reward, ...]:
        return tuple(part.reward for part in self.rewards.values())

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> Tensor:
        answers = [each.answer for each in asked]
        values: Mapping[str, Tensor] = {
            name: part.reward(batch, answers)[: len(asked)] for name, part in self.rewards.items()
        }
        weights = {name: part.weight for name, part in self.rewards.items()}
        if self.how == "min":
            return torch.stack(list(values.values())).amin(0)
        if self.how == "product":
            for name, value in values.items():
                if (value < 0).any():
                    raise KDError(
                        f"Combine: the reward {name} is negative, and a product of negative "
                        "numbers orders nothing: write how: sum, or another reward"
                    )
            return torch.stack([v.pow(weights[n]) for n, v in values.items()]).prod(0)
        if self.how == "quantile":
            values = {n: ranked(v, batch.group) for n, v in values.items()}
        return torch.stack([weights[n] * v for n, v in values.items()]).sum(0)


def ranked(values: Tensor, group: Tensor | None) -> Tensor:
    """Share of the group's other answers that are worse, ties counting half; nan stays."""
    if group is None:
        raise KDError("Combine: quantile ranks the answers to one prompt: draw several for each")
    number = group[: len(values)]
    others = (number[:, None] == number[None, :]) & ~torch.eye(
        len(values), dtype=torch.bool, device=values.device
    )
    others = others & ~values.isnan()[None, :]
    gap = values[:, None] - values[None, :]
    won = torch.where(others, (gap.sign() + 1) / 2, 0.0).sum(1)
    number_of_others = others.sum(1)
    share = torch.where(number_of_others > 0, won / number_of_others.clamp_min(1), 0.5)
    return torch.where(values.isnan(), values, share)
