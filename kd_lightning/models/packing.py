"""The real tokens of a padded batch in one row, and their states back in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.models import varlen
from kd_lightning.models.attention import Attention
from kd_lightning.types import Batch


@dataclass(frozen=True)
class Packed:
    """A batch `[B, T]` without its padding: one row of N tokens, sequence after sequence.

    Everything that shapes depend on (N, the number of sequences, the longest) is known on the host,
    so nothing waits for the device.

    Source: Krell et al. 2021, arXiv 2107.02027, section 3.2.2 (positions restart, no attention
    between sequences).
    """

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N]: 0, 1, 2, ... in each sequence
    places: Tensor  # [N]: where each token stands in the batch, row by row
    lengths: tuple[int, ...]  # of the sequences, all above 0
    shape: tuple[int, int]  # (B, T)

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """The batch packed. A batch without any token keeps one, so that a graph exists."""
        device = batch.input_ids.device
        rows, columns = batch.input_ids.shape
        lengths = batch.lengths if any(batch.lengths) else (1, *batch.lengths[1:])
        total = sum(lengths)
        count = torch.tensor(lengths, device=device)
        row = torch.repeat_interleave(count, output_size=total)
        position = torch.arange(total, device=device) - (count.cumsum(0) - count)[row]
        places = row * columns + position
        return cls(
            input_ids=batch.input_ids.flatten()[places][None],
            position_ids=position[None],
            places=places,
            lengths=tuple(n for n in lengths if n),
            shape=(rows, columns),
        )

    def borders(self, device: torch.device) -> Tensor:
        """Where sequences begin, and where the last one ends `[R + 1]` int32."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)

    def unpacked(self, states: Tensor) -> Tensor:
        """States `[1, N, D]` at their places in the batch `[B, T, D]`; zeros in the padding."""
        rows, columns = self.shape
        width = states.shape[-1]
        empty = states.new_zeros(rows * columns, width)
        return empty.index_copy(0, self.places, states[0]).view(rows, columns, width)


def worthwhile(batch: Batch, attention: Attention) -> bool:
    """Whether a batch has padding enough."""
    return padded(batch.input_ids.shape, sum(batch.lengths), attention)


def padded(shape: torch.Size, tokens: int, attention: Attention) -> bool:
    """Whether a batch of this shape `[B, T]` with so many real tokens has padding enough."""
    rows, columns = shape
    return attention.packs and rows * columns - tokens >= max(1, attention.least * rows)


def hidden_states(backbone: nn.Module, batch: Batch, attention: Attention) -> Tensor:
    """Last hidden states `[B, T, D]` of a batch, computed on its real tokens only."""
    packed = Packed.of(batch)
    output = backbone(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        **_apart(packed, attention),
    )
    return packed.unpacked(output.last_hidden_state)


def prompts(transformer: Any, ids: Tensor, mask: Tensor, attention: Attention) -> Any:
    """Of prompts `[B, P]`, padded anyhow: keys and values of their N tokens, row by row, and the
    logits behind each prompt `[1, B, V]`.
    """
    lengths = mask.sum(1)
    packed = Packed(
        input_ids=ids[mask.bool()][None],
        position_ids=torch.cat([torch.arange(n, device=ids.device) for n in lengths.tolist()])[
            None
        ],
        places=mask.flatten().nonzero()[:, 0],
        lengths=tuple(lengths.tolist()),
        shape=(len(ids), ids.shape[1]),
    )
    return transformer(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=True,
        logits_to_keep=lengths.cumsum(0) - 1,
        **_apart(packed, attention),
    )


def _apart(packed: Packed, attention: Attention) -> Mapping[str, Any]:
    """What keeps the sequences apart, by the names that transformers gives it."""
    if attention.borders == "mask":  # transformers makes it where positions restart
        return {"attention_mask": None}
    device = packed.input_ids.device
    cuts = packed.borders(torch.device("cpu") if attention.borders == "host" else device)
    longest = max(packed.lengths)
    # a mask of four dimensions is handed down as it is, so that none is made of `[N, N]`; flash
    # attention makes none by itself
    unused = torch.empty(0, 0, 0, 0, device=device)
    return {
        "attention_mask": unused if attention.name in varlen.IMPLEMENTATIONS else None,
        "cu_seq_lens_q": cuts,
        "cu_seq_lens_k": cuts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
