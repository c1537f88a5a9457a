"""A step of transformers' continuous batching, in which requests look at their own keys alone."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "by_request"
"""Of the attention, as transformers calls it; it takes no mask, so that none is made."""
USED = {
    ("continuous_api", "ContinuousBatchingManager"): ("_create_batch_processor", "add_request"),
    ("continuous_api", "ContinuousBatchProcessor"): (
        "prepare_next_batch", "_generation_step", "update_batch",
    ),
    ("input_outputs", "ContinuousBatchingIOs"): ("prepare_batch_tensors",),
    ("cb_logits_processors", "ContinuousBatchingLogitsProcessor"): (
        "fill_defaults", "prepare_tensor_args",
    ),
    ("cache", "PagedAttentionCache"): ("update",),
}  # fmt: skip
"""What is used of transformers beyond its documentation."""


def module(name: str) -> Any:
    """A part of transformers' continuous batching."""
    return importlib.import_module(f"transformers.generation.continuous_batching.{name}")


@functools.cache
def known() -> bool:
    """Whether the installed transformers has all that is used of it."""
    try:
        return all(
            hasattr(getattr(module(where), kind), name)
            for (where, kind), names in USED.items()
            for name in names
        )
    except (ImportError, AttributeError):
        return False


@dataclass(frozen=True)
class Seen:
    """Whose keys a step's tokens look at.

    transformers lays the keys of all requests one behind the other, and with `sdpa` every token is
    held against all of them under a mask: its cost grows with the square of the requests.
    """

    index: Tensor
    """Places in the cache `[N]`: of requests with one new token `K` each, padded, then of the
    others; empty: nothing is in the cache yet."""
    mask: Tensor
    """Which of them are seen `[S, 1, 1, K]`, of the S requests that add one token."""
    pieces: list[tuple[int, int, int, int]]
    """Of the others: begin and end of their queries and of their keys."""

    @classmethod
    def of(cls, given: Any) -> Seen:
        """Out of what transformers has prepared for the step."""
        number = given.num_request_in_batch
        q = given.cumulative_seqlens_q[: number + 1].tolist()
        if given.max_kv_read == 0:
            own = [(a, b, a, b) for a, b in pairwise(q)]
            return cls(given.read_index_storage[0, :0], torch.zeros(0, 1, 1, 0), own)
        borders = given.cumulative_seqlens_k["full_attention"][: number + 1]
        k = borders.tolist()
        single = next((i for i in range(number) if q[i + 1] - q[i] > 1), number)
        read = given.read_index_storage[0, : k[-1]]
        lengths = borders.diff()[:single]
        places = torch.arange(int(lengths.max()) if single else 0, device=read.device)
        mask = places < lengths[:, None]
        where = borders[:single, None] + places.minimum(lengths[:, None] - 1)
        moved = where.numel() - k[single]
        pieces = [(q[i], q[i + 1], k[i] + moved, k[i + 1] + moved) for i in range(single, number)]
        index = torch.cat([read[where.flatten()], read[k[single] :]])
        return cls(index, mask[:, None, None], pieces)


def by_request(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: Any = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each request on its keys in the cache, to which the new ones are added.

    Shapes: query `[1, heads, Q, width]`, key and value `[1, key heads, Q, width]`, the result
    `[1, Q, heads, width]`.

    Source: Kwon et al. 2023, Efficient Memory Management for LLM Serving with PagedAttention,
    arXiv 2309.06180, section 4.1.
    """
    seen: Seen = cache.seen
    more["read_index"] = [seen.index]
    key, value = cache.update(key, value, module.layer_idx, more)
    groups = query.shape[1] // key.shape[1]
    single, longest = seen.mask.shape[0], seen.mask.shape[3]
    parts = []
    if single:
        k, v = (
            x[0, :, : single * longest].view(x.shape[1], single, longest, -1).transpose(0, 1)
            for x in (key, value)
        )
        q = query[0, :, :single].transpose(0, 1).reshape(single, -1, groups, query.shape[3])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.mask, scale=scaling)
        parts.append(out.flatten(1, 2))
    for a, b, first, last in seen.pieces:
        q, k, v = query[:, :, a:b], key[:, :, first:last], value[:, :, first:last]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        mask = None
        if last - first > b - a:
            ones = torch.ones(b - a, last - first, dtype=torch.bool, device=q.device)
            mask = ones.tril(last - first - b + a)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)[None], None


def run(manager: Any, transformer: Any, attention: Callable[[], None]) -> None:
    """All requests of a manager, step by step, in this thread.

    Its own thread would hand over every step, and its end collects garbage three times: half a
    second of a process that has imported everything.

    Args:
        manager: Of continuous batching, not started.
        transformer: Its model.
        attention: Called before the cache is made: sets which attention reads it.
    """
    attention()
    processor = manager._create_batch_processor()
    processor.__class__ = _quiet(type(processor))
    processor.inputs_and_outputs.compute_stream = None  # behind the optimizer's step, as all else
    manager.batch_processor = processor
    try:
        while processor.prepare_next_batch():
            processor.cache.seen = (
                Seen.of(processor.inputs_and_outputs)
                if transformer.config._attn_implementation == NAME
                else None
            )
            processor._generation_step(transformer)
            processor.update_batch()
    finally:
        manager.batch_processor = None


def _quiet(kind: type) -> type:
    """A batch processor whose end collects no garbage."""
    return type(kind.__name__, (kind,), {"__del__": lambda self: None})


@contextmanager
def attending(transformer: Any) -> Iterator[Callable[[], None]]:
    """Attention that reads a cache in pages, for a while; what is yielded sets the best one."""
    AttentionInterface.register(NAME, by_request)
    own = transformer.config._attn_implementation
    flash = own.startswith("flash_attention")
    if not flash:
        transformer.set_attn_implementation("sdpa")  # what a manager takes

    def best() -> None:
        if not flash and whole(transformer):
            transformer.set_attn_implementation(NAME)

    try:
        yield best
    finally:
        transformer.set_attn_implementation(own)


def whole(transformer: Any) -> bool:
    """Whether every layer sees all that stands before."""
    text = transformer.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return getattr(text, "sliding_window", None) is None
    return set(kinds) <= {"full_attention"}
