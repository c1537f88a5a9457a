"""Sums over counted tokens, chunk by chunk, whatever the loss is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_lightning.kernels import linear_loss
from kd_lightning.kernels.linear_loss import Job
from kd_lightning.kernels.projection import Multiplier, Projection
from kd_lightning.types import Batch, Head, ModelOutput, Signal

if TYPE_CHECKING:
    from kd_lightning.losses.base import TokenLoss

CHUNK_BYTES = 256 * 2**20
"""Budget for the float32 tiles of one chunk; the token count of a chunk follows from it."""

DEVICE_CHUNK_BYTES = {"cuda": 3 * CHUNK_BYTES}
"""Budgets of devices that are idle in small products."""

TILES, FUSED_TILES = 8, 2
"""Float32 tensors of a chunk's logits that exist at once: step by step about, fused exactly."""


class Tokens:
    """A chunk of counted tokens: the logits of both models and their log-softmax, made once."""

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        targets: Tensor,
        vocab: int,
    ) -> None:
        """`student [N, V_s]`, `teacher [N, V_t]` logits; `vocab`: the ids that both models know."""
        self.student = _upcast(student)
        self.teacher = None if teacher is None else _upcast(teacher)
        self.targets = targets
        self.vocab = vocab
        self._made: dict[tuple[str, float], Tensor] = {}

    def log_s(self, temperature: float = 1.0) -> Tensor:
        """Student log-probabilities over the shared ids, `[N, V]`."""
        return self._log("s", self.student, temperature)

    def log_t(self, temperature: float = 1.0) -> Tensor:
        """Teacher log-probabilities over the shared ids, `[N, V]`; no gradient."""
        if self.teacher is None:
            raise AssertionError("a loss that reads the teacher must declare it in `needs`")
        return self._log("t", self.teacher, temperature)

    def nll(self) -> Tensor:
        """Student -log p(target) over all of its own rows, `[N]`: what cross-entropy sums."""
        z = self.student
        return z.logsumexp(-1) - z.gather(-1, self.targets[:, None]).squeeze(-1)

    def with_leaf(self) -> Tokens:
        """The same tokens, with the student's logits as what derivatives are taken by."""
        leaf = self.student.detach().requires_grad_()
        same = Tokens(leaf, self.teacher, self.targets, self.vocab)
        same._made = {key: made for key, made in self._made.items() if key[0] == "t"}
        return same

    def _log(self, who: str, logits: Tensor, temperature: float) -> Tensor:
        key = (who, temperature)
        if key not in self._made:
            shared = logits[:, : self.vocab]
            shared = shared / temperature if temperature != 1.0 else shared
            self._made[key] = shared.log_softmax(-1)
        return self._made[key]


def _upcast(logits: Tensor) -> Tensor:
    """Half precision to float32 before any softmax; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def chunk_rows(vocab: int, tiles: int, device: torch.device) -> int:
    """How many tokens of `vocab` logits fit into the byte budget."""
    budget = DEVICE_CHUNK_BYTES.get(device.type, CHUNK_BYTES)
    return max(1, budget // (4 * tiles * max(1, vocab)))


def over_tokens(
    function: Callable[[Tokens, Tensor], Tensor],
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Batch,
    rows: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """Sum of `function(tokens, rows of the chunk)` over chunks of the flat positions `rows [N]`.

    Only these positions reach a head, so no `[B, T, V]` tensor exists; a chunk's logits are
    computed again in the backward pass instead of being kept. No row at all: one empty chunk, whose
    sum is 0 and has a graph.
    """
    vocab = _shared(student, teacher)
    hidden_s = student.hidden.flatten(0, 1)
    hidden_t = None if teacher is None else teacher.hidden.flatten(0, 1)
    targets = batch.targets.flatten()

    def one(index: Tensor, states: Tensor) -> Tensor:
        logits_t = None
        if teacher is not None and hidden_t is not None:
            with torch.no_grad():
                logits_t = teacher.head(hidden_t[index])
        tokens = Tokens(student.head(states), logits_t, targets[index].clamp_min(0), vocab)
        return function(tokens, index)

    size = chunk or chunk_rows(vocab, TILES, hidden_s.device)
    pieces = list(torch.split(rows, size)) if len(rows) else [rows]
    total: Tensor | None = None
    for index in pieces:
        states = hidden_s[index]
        if len(pieces) > 1 and torch.is_grad_enabled():
            part = checkpoint(one, index, states, use_reentrant=False, preserve_rng_state=False)
        else:
            part = one(index, states)
        total = part if total is None else total + part
    assert total is not None
    return total


class TokenSum:
    """Terms on the same tokens, over one projection of each model's hidden states.

    Fused with the head (`kernels.linear_loss`) where it is a plain linear layer; where it is more
    (adapters, quantised, sharded), or a loss learns itself, step by step.
    """

    def __init__(
        self,
        losses: Mapping[str, TokenLoss],
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        chunk: int | None = None,
    ) -> None:
        """A teacher that none of the losses reads is not projected."""
        self.losses = losses
        self.student = student
        reads = any(Signal.LOGITS in loss.needs for loss in losses.values())
        self.teacher = teacher if reads else None
        self.batch = batch
        self.chunk = chunk
        self.weights = torch.stack([loss.counted(batch).flatten() for loss in losses.values()])
        self.rows = self.weights.ne(0).any(0).nonzero().squeeze(-1)  # [N]

    def terms(self) -> dict[str, Tensor]:
        """Every loss's weighted sum, `[]`, with a graph."""
        job, plain = self.job()
        if job is None or plain is None:
            return dict(zip(self.losses, self.step_by_step().unbind(), strict=True))
        weights = self.weights[:, self.rows]
        if len(self.losses) == 1:
            total, _ = linear_loss.total(job, self.states(), plain.weight, plain.bias, weights)
            return dict.fromkeys(self.losses, total)
        values = linear_loss.values(job, self.states(), plain.weight, plain.bias)
        return dict(zip(self.losses, (weights * values).sum(1).unbind(), strict=True))

    def total(
        self, factors: Mapping[str, float], counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms times factors over counts, added up; the terms themselves without a graph."""
        job, plain = self.job()
        kind = self.student.hidden.dtype if job is None else job.student.wide
        kind = torch.promote_types(kind, torch.float32)
        each = [factors[name] / counts[name].to(kind).clamp_min(1e-9) for name in self.losses]
        factor = torch.stack(each)  # [K]
        if job is None or plain is None:
            sums = self.step_by_step()
            total = (factor * sums).sum()
        else:
            weights = self.weights[:, self.rows]
            mixed = weights * factor[:, None]
            total, values = linear_loss.total(job, self.states(), plain.weight, plain.bias, mixed)
            sums = (weights * values).sum(1)
        return total, dict(zip(self.losses, sums.detach().unbind(), strict=True))

    def step_by_step(self) -> Tensor:
        """The sums `[K]` by the heads' own forwards and autograd, chunks computed twice."""

        def sums(tokens: Tokens, index: Tensor) -> Tensor:
            terms = zip(self.weights, self.losses.values(), strict=True)
            return torch.stack([(w[index] * loss.per_row(tokens)).sum() for w, loss in terms])

        return over_tokens(sums, self.student, self.teacher, self.batch, self.rows, self.chunk)

    def states(self) -> Tensor:
        """The student's hidden states of the counted tokens, `[N, D]`."""
        return self.student.hidden.flatten(0, 1)[self.rows]

    def job(self) -> tuple[Job | None, Projection | None]:
        """What the kernel does, and the student's head; None where it cannot."""
        losses = self.losses.values()
        plain, other = _plain(self.student.head), None
        if plain is None or any(p.requires_grad for loss in losses for p in loss.parameters()):
            return None, None
        if self.teacher is not None:
            other = _plain(self.teacher.head)
            if other is None:
                return None, None
        targets = self.batch.targets.flatten()[self.rows].clamp_min(0)
        vocab = _shared(self.student, self.teacher)

        def tile(
            student: Tensor, teacher: Tensor | None, there: slice, slopes: bool
        ) -> list[tuple[Tensor, Tensor | None]]:
            tokens = Tokens(student, teacher, targets[there], vocab)
            if slopes:
                return [loss.with_slope(tokens) for loss in losses]
            return [(loss.per_row(tokens), None) for loss in losses]

        hidden = None
        if self.teacher is not None:
            with torch.no_grad():
                hidden = self.teacher.hidden.flatten(0, 1)[self.rows]
        job = Job(
            len(self.losses),
            tile,
            Multiplier(plain),
            None if other is None else Multiplier(other),
            hidden,
            self.chunk or chunk_rows(vocab, FUSED_TILES, plain.weight.device),
        )
        return job, plain


def _shared(student: ModelOutput, teacher: ModelOutput | None) -> int:
    return student.head.vocab if teacher is None else min(student.head.vocab, teacher.head.vocab)


def _plain(head: Head) -> Projection | None:
    """The head's tensors, if it says that they are all there is to it."""
    read = getattr(head, "projection", None)
    made = None if read is None else read()
    return made if isinstance(made, Projection) else None
