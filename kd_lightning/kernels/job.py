"""What the kernel is given: a loss on compacted tokens, and how its tiles are computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from kd_lightning.kernels.backends import BackEnd
from kd_lightning.kernels.formula import Formula
from kd_lightning.kernels.projection import Multiplier

Terms: TypeAlias = Sequence[tuple[Tensor, Tensor | None]]
"""Each term's values `[n]` and, where asked for, slopes.

Slopes are derivatives by the student's logits, `[n, V]` or narrower (ids at the end that are left
out have none), unweighted, in new tensors.
"""

Tile: TypeAlias = Callable[[Tensor, Tensor | None, slice, bool], Terms]
"""The terms of a loss on a few tokens: from their logits `[n, V]` and `[n, V_t]`, which tokens of
the job they are, and whether slopes are asked for.
"""

Watch: TypeAlias = Callable[[Tensor, Tensor | None, slice], None]
"""Sees a few tokens' logits `[n, V]` and `[n, V_t]`, and which tokens of the job they are.

Called once for every token, with or without gradients; the logits are overwritten afterwards.
"""


class Pure(Hashable, Protocol):
    """A tile that depends on its arguments alone: what a compiler is given.

    Equal ones are compiled once, so it is the same, or an equal one, in every step.
    """

    def __call__(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, slopes: bool
    ) -> Terms:
        """As a tile, with the tokens' labels `[n]` in place of the slice."""
        ...


@dataclass(frozen=True)
class Job:
    """A loss on the compacted tokens of a batch."""

    terms: int
    """K: how many terms the tile has."""
    tile: Tile
    student: Multiplier
    teacher: Multiplier | None
    hidden_t: Tensor | None  # [N, D_t]
    chunk: int
    """Tokens whose logits exist at once."""
    watch: Watch | None = None
    """Reads the logits on the way, for statistics."""
    back_end: BackEnd = "torch"
    """What computes the tiles: `backends.pick` knows."""
    labels: Tensor | None = None  # [N] int64; the other back ends need it, and what follows
    pure: Pure | None = None
    formulas: tuple[Formula, ...] = ()
    """Of all terms, or none."""
    vocab: int = 0
    """Ids that both models know."""
