"""Answers to one prompt behind one copy of it: a prompt is computed once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.models import varlen
from kd_lightning.models.attention import HALF, PACKS, Attention
from kd_lightning.types import Batch

IMPLEMENTATIONS = ("per_sequence", "sdpa", "eager")
"""Attentions that can let answers see their prompt and not each other."""


@dataclass(frozen=True)
class Forest:
    """The tokens of a batch in one row, what rows have in common once.

    A row that has n leading tokens in common with the row above does not hold them: it looks at
    those above. `[prompt | answer 1 | answer 2 | ...]`, positions in an answer going on behind the
    prompt's; a token sees its prompt and what stands before it in its own answer.

    Source: the masks of Krell et al. 2021, arXiv 2107.02027, section 3.2.2, with a common prefix.
    """

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N]
    places: Tensor  # [M]: where each real token of the batch stands among N, row by row
    rows: Tensor  # [M]: where it stands in the batch, flat
    pieces: tuple[varlen.Piece, ...]
    shape: tuple[int, int]  # (B, T)

    @classmethod
    def of(cls, batch: Batch) -> Forest:
        """The batch with each common beginning once."""
        device = batch.input_ids.device
        columns = batch.input_ids.shape[1]
        places: list[int] = []
        own: list[int] = []  # flat places in the batch, of the N tokens
        positions: list[int] = []
        pieces: list[varlen.Piece] = []
        above: list[int] = []  # of the row above: its tokens among N
        for row, (length, shared) in enumerate(zip(batch.lengths, common(batch), strict=True)):
            first, begin = len(own), row * columns
            mine = [*above[:shared], *range(first, first + length - shared)]
            own += range(begin + shared, begin + length)
            positions += range(shared, length)
            if length > shared:
                seen = (above[0], above[0] + shared) if shared else (first, first)
                pieces.append(varlen.Piece(seen, (first, first + length - shared)))
            places += mine
            above = mine
        flat = torch.tensor(own, device=device)
        rows = torch.tensor(
            [r * columns + t for r, n in enumerate(batch.lengths) for t in range(n)], device=device
        )
        return cls(
            input_ids=batch.input_ids.flatten()[flat][None],
            position_ids=torch.tensor(positions, device=device)[None],
            places=torch.tensor(places, device=device),
            rows=rows,
            pieces=tuple(pieces),
            shape=(len(batch), columns),
        )

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Who sees whom, `[1, 1, N, N]`: 0, or the smallest number."""
        total = self.input_ids.shape[1]
        seen = torch.zeros(total, total, dtype=torch.bool, device=self.input_ids.device)
        for piece in self.pieces:
            (a, b), (first, last) = piece.seen, piece.own
            seen[first:last, a:b] = True
            seen[first:last, first:last] = torch.ones_like(seen[first:last, first:last]).tril()
        least = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, least)[
            None, None
        ]

    def unpacked(self, states: Tensor) -> Tensor:
        """States `[1, N, D]` at their places in the batch `[B, T, D]`; zeros in the padding.

        What rows have in common is copied to each, so its gradient is the sum over them.
        """
        rows, columns = self.shape
        width = states.shape[-1]
        empty = states.new_zeros(rows * columns, width)
        return empty.index_copy(0, self.rows, states[0][self.places]).view(rows, columns, width)


def common(batch: Batch) -> list[int]:
    """Leading tokens that each row has in common with the row above; 0 in the first.

    They stand in one piece: with the row above too, if it has a beginning in common itself. A row
    keeps a token of its own.
    """
    found: list[int] = []
    for row, length in enumerate(batch.lengths):
        told = batch.shared[row] if row and row < len(batch.shared) else 0
        above = (found[-1] or batch.lengths[row - 1]) if row else 0
        found.append(min(told, above, max(0, length - 1)))
    return found


def worthwhile(batch: Batch, model_type: str, attention: Attention, window: int | None) -> bool:
    """Whether there is something to share, and the model can do it exactly."""
    if not any(batch.shared) or attention.name not in IMPLEMENTATIONS:
        return False
    if model_type not in PACKS or (window is not None and window < max(batch.lengths)):
        return False
    return sum(common(batch)) > 0


def why_not(model_type: str, attention: Attention) -> str | None:
    """One sentence where answers to one prompt cannot share it; None: they can."""
    if model_type not in PACKS:
        return f"prompts are computed once for each answer: {model_type} is not known to share them"
    if attention.name not in IMPLEMENTATIONS:
        return (
            f"prompts are computed once for each answer: {attention.name} cannot share them; write "
            "attention: per_sequence to have that"
        )
    return None


def hidden_states(backbone: nn.Module, batch: Batch, attention: Attention) -> Tensor:
    """Last hidden states `[B, T, D]`, each common beginning computed once."""
    forest = Forest.of(batch)
    device = batch.input_ids.device
    how: dict[str, Any] = {"attention_mask": torch.empty(0, 0, 0, 0, device=device)}
    if attention.name == "per_sequence":
        how["pieces"] = forest.pieces
    else:
        dtype = next(backbone.parameters()).dtype
        if torch.is_autocast_enabled(device.type) and dtype not in HALF:
            dtype = torch.get_autocast_dtype(device.type)
        how["attention_mask"] = forest.mask(dtype)
    output = backbone(
        input_ids=forest.input_ids, position_ids=forest.position_ids, use_cache=False, **how
    )
    return forest.unpacked(output.last_hidden_state)
