"""Counted tokens in chunks that fit, with whatever the teacher gives for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_lightning.errors import KDError
from kd_lightning.losses.distributions import Tokens
from kd_lightning.losses.sparse import SparseTokens
from kd_lightning.types import IGNORE, Asking, Batch, ModelOutput, SparseTargets

CHUNK_BYTES = 256 * 2**20
"""Budget for the float32 tiles of one chunk; the token count of a chunk follows from it."""

DEVICE_CHUNK_BYTES = {"cuda": 3 * CHUNK_BYTES}
"""Budgets of devices that are idle in small products."""

TILES, FUSED_TILES = 8, 2
"""Float32 tensors of a chunk's logits that exist at once: step by step about, fused exactly."""

CACHE_BYTES = 2**19
"""Size of a tile that stays in a processor's cache: what only looks takes half the time then."""


class Watch(Protocol):
    """Looks at the tokens that a loss is computed on, for statistics."""

    def __call__(self, tokens: Tokens, positions: Tensor) -> None:
        """A chunk of tokens without a graph, and their flat positions in the batch, `[N]`.

        Every position with a target is shown once; others may be.
        """


def chunk_rows(vocab: int, tiles: int, device: torch.device) -> int:
    """How many tokens of `vocab` logits fit into the byte budget."""
    budget = DEVICE_CHUNK_BYTES.get(device.type, CHUNK_BYTES)
    return max(1, budget // (4 * tiles * max(1, vocab)))


class Scope:
    """Makes the tokens of a chunk, whatever the teacher gives."""

    def __init__(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch, rows: Tensor
    ) -> None:
        """For chunks of the flat positions `rows [N]`."""
        self.rows = rows
        self.targets = batch.targets.flatten()[rows].clamp_min(0)
        sparse = None if teacher is None else teacher.sparse
        self.sparse = None if sparse is None else at_positions(sparse, batch, rows)
        self.head = None if teacher is None or sparse is not None else teacher.head
        known = [student.head.vocab]
        known += [] if sparse is None else [sparse.vocab]
        known += [] if self.head is None else [self.head.vocab]
        self.vocab = min(known)

    def tokens(self, there: slice, student: Tensor, teacher: Tensor | None) -> Tokens:
        """Tokens `there` among the rows, with their logits `[n, V_s]` and `[n, V_t]`."""
        if self.sparse is not None:
            few = take(self.sparse, there)
            made: Tokens = SparseTokens(student, few, self.targets[there], self.vocab)
        else:
            made = Tokens(student, teacher, self.targets[there], self.vocab)
        made.places = self.rows[there]
        return made


def over_tokens(
    function: Callable[[Tokens, Tensor], Tensor],
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Batch,
    rows: Tensor,
    chunk: int | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sum of `function(tokens, rows of the chunk)` over chunks of the flat positions `rows [N]`."""
    parts = each_chunk(function, student, teacher, batch, rows, chunk, watch)
    return sum(parts[1:], parts[0])


def each_chunk(
    function: Callable[[Tokens, Tensor], Tensor],
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Batch,
    rows: Tensor,
    chunk: int | None = None,
    watch: Watch | None = None,
) -> list[Tensor]:
    """`function(tokens, rows of the chunk)` of every chunk of the flat positions `rows [N]`.

    Only these positions reach a head, so no `[B, T, V]` tensor exists; a chunk's logits are
    computed again in the backward pass instead of being kept, and watched the first time. No row at
    all: one empty chunk, whose result has a graph.
    """
    scope = Scope(student, teacher, batch, rows)
    hidden_s = student.hidden.flatten(0, 1)
    hidden_t = None if scope.head is None or teacher is None else teacher.hidden.flatten(0, 1)
    seen: set[int] = set()

    def one(start: int, index: Tensor, states: Tensor) -> Tensor:
        there, logits_t = slice(start, start + len(index)), None
        if scope.head is not None and hidden_t is not None:
            with torch.no_grad():
                logits_t = scope.head(hidden_t[index])
        logits_s = student.head(states)
        if watch is not None and start not in seen:
            seen.add(start)
            with torch.no_grad():
                watch(scope.tokens(there, logits_s.detach(), logits_t), index)
        return function(scope.tokens(there, logits_s, logits_t), index)

    size = chunk or chunk_rows(scope.vocab, TILES, hidden_s.device)
    parts: list[Tensor] = []
    for start in range(0, max(1, len(rows)), size):
        index = rows[start : start + size]
        states = hidden_s[index]
        if len(rows) > size and torch.is_grad_enabled():
            part = checkpoint(
                one, start, index, states, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = one(start, index, states)
        parts.append(part)
    return parts


@torch.no_grad()
def show(watch: Watch, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
    """Let somebody look at the tokens that have a target, in a pass of its own."""
    rows = (batch.targets.flatten() != IGNORE).nonzero().squeeze(-1)
    few = max(64, CACHE_BYTES // (4 * student.head.vocab))

    def look(tokens: Tokens, index: Tensor) -> Tensor:
        watch(tokens, index)
        return tokens.student.new_zeros(())

    over_tokens(look, student, teacher, batch, rows, few if rows.device.type == "cpu" else None)


def refuse(sparse: SparseTargets, losses: Iterable[Asking], vocab: int) -> None:
    """Sampled shares serve only what they are unbiased for; `vocab`: ids that the student knows."""
    if sparse.support != "sampled":
        return
    for loss in losses:
        if not loss.linear_in_teacher:
            raise KDError(
                f"{type(loss).__name__} is not linear in the teacher's probabilities, so sampled "
                "targets bias it: use ForwardKL, or a cache of top-k targets"
            )
    if vocab < sparse.vocab:
        raise KDError(
            f"the sampled targets are over {sparse.vocab} ids, the student knows {vocab}: use a "
            "cache of top-k targets"
        )


def take(sparse: SparseTargets, rows: Tensor | slice) -> SparseTargets:
    """Some of its rows."""
    return replace(
        sparse,
        ids=sparse.ids[rows],
        logits=sparse.logits[rows],
        lse={temperature: lse[rows] for temperature, lse in sparse.lse.items()},
        label=sparse.label[rows],
        entropy=sparse.entropy[rows],
    )


def at_positions(sparse: SparseTargets, batch: Batch, rows: Tensor) -> SparseTargets:
    """The targets of the flat positions `rows [N]` of a batch."""
    counted = (batch.targets != IGNORE).flatten()
    stored = len(counted.nonzero())
    if stored != len(sparse.ids):
        raise AssertionError(f"{len(sparse.ids)} stored targets for {stored} counted tokens")
    return take(sparse, (counted.cumsum(0) - 1).clamp_min(0)[rows])
