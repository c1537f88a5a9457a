"""What an answer is expected to earn, before each of its words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import wide


class ValueHead(nn.Module):
    r"""A linear map of the student's state, 0 at first: :math:`V_t = w \cdot h_t + b`.

    The state at position t has read everything before the word that is judged. In float32, and part
    of the checkpoint as the loss's own weight.
    """

    def __init__(self, width: int, through: bool = False) -> None:
        """Store the settings.

        Args:
            width: The student's hidden size.
            through: Whether its error also moves the student itself.
        """
        super().__init__()
        self.width = width
        self.through = through
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `[B, T]` of states `[B, T, D]`."""
        if hidden.shape[-1] != self.width:
            size = hidden.shape[-1]
            raise KDError(f"the student's hidden size is {size}: write width: {size}")
        states = wide(hidden if self.through else hidden.detach())
        values: Tensor = states @ self.weight.to(states.dtype) + self.bias.to(states.dtype)
        return values
