"""Attention over sequences that stand one behind the other in one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Varlen = Callable[..., Tensor]
"""The signature of `torch.nn.attention.varlen.varlen_attn`."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a row that sees itself causally, and all of another stretch before it."""

    seen: tuple[int, int]
    """Begin and end of that; empty: nothing."""
    own: tuple[int, int]
    """Its own begin and end."""


def torch_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    varlen: Varlen | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence by torch's own kernel; without borders, as `sdpa`.

    Shapes: query `[1, heads, N, width]`, key and value `[1, key heads, N, width]`, the result
    `[1, N, heads, width]`; borders `[R + 1]` int32 on the device. `varlen` stands in for the
    kernel in tests.

    Source: Dao 2023, FlashAttention-2, arXiv 2307.08691.
    """
    if cu_seq_lens_q is None:
        return padded(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    assert dropout == 0.0 and more.get("softcap") is None, "refused in attention.choose"
    assert max_length_q is not None
    if varlen is None:
        from torch.nn.attention.varlen import varlen_attn

        varlen = cast(Varlen, varlen_attn)
    dtype = value.dtype  # a norm after the projection leaves query and key in float32
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    if dtype == torch.float32:  # evaluation outside autocast: the kernel knows half precision only
        how = {"scaling": scaling, "sliding_window": sliding_window}
        alone: tuple[Tensor, None] = per_sequence(
            module, query, key, value, None, cu_seq_lens_q=cu_seq_lens_q, **how
        )
        return alone
    rows = [x[0].transpose(0, 1).to(dtype) for x in (query, key, value)]
    output = varlen(
        *rows,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None], None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def per_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    pieces: Sequence[Piece] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention sequence by sequence, exact on every device; without borders, as `sdpa`.

    Shapes as in `torch_varlen`; borders on the host, so that reading them waits for no device.
    `pieces` in place of borders: answers that look at a prompt which stands there once.
    """
    how: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "softcap": softcap}
    if pieces is not None:
        return _by_piece(query, key, value, pieces, **how), None
    if cu_seq_lens_q is None:
        return padded(module, query, key, value, attention_mask, **how, **more)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    lengths = cu_seq_lens_q.diff().tolist()
    split = zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True)
    parts = []
    for q, k, v in split:
        short = sliding_window is None or sliding_window >= q.shape[2]
        mask = None if short else _causal(q.shape[2], q.device, sliding_window)
        parts.append(_one(q, k, v, mask, **how))
    return torch.cat(parts, 2).transpose(1, 2), None


def _by_piece(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], **how: Any
) -> Tensor:
    """The pieces, in the order of their tokens, one after the other `[1, N, heads, width]`."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    parts = []
    for piece in pieces:
        (a, b), (first, last) = piece.seen, piece.own
        q, k, v = (x[:, :, first:last] for x in (query, key, value))
        mask = None
        if b > a:
            k, v = (torch.cat([x[:, :, a:b], own], 2) for x, own in ((key, k), (value, v)))
            mask = torch.ones(last - first, k.shape[2], dtype=torch.bool, device=q.device)
            mask = mask.tril(b - a)
        parts.append(_one(q, k, v, mask, **how))
    return torch.cat(parts, 2).transpose(1, 2)


def padded(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention with a mask, over a batch: what generation and full rows use."""
    if softcap is None:
        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return made
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = _causal(query.shape[2], query.device)
    output = _one(query, key, value, attention_mask, dropout, scaling, softcap, causal=False)
    return output.transpose(1, 2), None


def _one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    causal: bool = True,
) -> Tensor:
    """Attention where `mask` (True: seen) allows it; no mask: causal, if `causal`."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and causal,
            scale=scaling,
        )
    if mask is None and causal:
        mask = _causal(query.shape[2], query.device)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    upcast = torch.promote_types(scores.dtype, torch.float32)
    shares = scores.softmax(-1, dtype=upcast).to(value.dtype)
    return F.dropout(shares, dropout) @ value


def _causal(length: int, device: torch.device, window: int | None = None) -> Tensor:
    """Which keys a query sees `[T, T]`: itself and those before it, `window` in all."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() if window is None else ones.tril() & ones.triu(1 - window)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "torch_varlen": torch_varlen,
    "per_sequence": per_sequence,
}
"""What transformers does not have, by the name that it is registered under."""
