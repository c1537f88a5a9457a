"""Sums over counted tokens, chunk by chunk, whatever the loss is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_lightning.kernels import backends, linear_loss
from kd_lightning.kernels.backends import BackEnd
from kd_lightning.kernels.formula import Formula
from kd_lightning.kernels.job import Job, Pure
from kd_lightning.kernels.projection import Multiplier, Projection
from kd_lightning.losses.chunks import (
    FUSED_TILES,
    Scope,
    Watch,
    chunk_rows,
    each_chunk,
    over_tokens,
    refuse,
)
from kd_lightning.losses.distributions import Tokens
from kd_lightning.losses.pure import PureTerms
from kd_lightning.types import IGNORE, Batch, Head, ModelOutput, Signal

if TYPE_CHECKING:
    from kd_lightning.losses.base import TokenLoss


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
        watch: Watch | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """A teacher that none of the losses reads is projected for somebody who looks only.

        `counted`: the weights `[B, T]` of all losses, in place of what each counts by itself.
        """
        self.losses = losses
        self.student = student
        self.reads = any(Signal.LOGITS in loss.needs for loss in losses.values())
        self.teacher = teacher if self.reads or watch is not None else None
        self.batch = batch
        self.chunk = chunk
        self.watch = watch
        weights = [loss.counted(batch) if counted is None else counted for loss in losses.values()]
        self.weights = torch.stack([each.flatten() for each in weights])
        rows = self.weights.ne(0).any(0)
        if watch is not None:
            rows = rows | (batch.targets.flatten() != IGNORE)
        self.rows = rows.nonzero().squeeze(-1)  # [N]
        if self.reads and teacher is not None and teacher.sparse is not None:
            refuse(teacher.sparse, losses.values(), student.head.vocab)

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

    def values(self) -> dict[str, Tensor]:
        """Every loss's unweighted value at every position, `[B, T]` with a graph; 0 elsewhere."""
        job, plain = self.job()
        if job is None or plain is None:
            found = torch.cat(self.chunk_by_chunk(), 1)  # [K, N]
        else:
            found = linear_loss.values(job, self.states(), plain.weight, plain.bias)
        shape = self.batch.targets.shape
        empty = found.new_zeros(len(found), shape.numel())
        whole = empty.index_copy(1, self.rows, found).view(-1, *shape)
        return dict(zip(self.losses, whole.unbind(), strict=True))

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
            weights = self.weights[:, index]
            values = [loss.per_row(self.shown(tokens, loss)) for loss in self.losses.values()]
            return torch.stack([(w * v).sum() for w, v in zip(weights, values, strict=True)])

        return over_tokens(
            sums, self.student, self.teacher, self.batch, self.rows, self.chunk, self.watch
        )

    def chunk_by_chunk(self) -> list[Tensor]:
        """The values `[K, n]` of each chunk, by the heads' own forwards and autograd."""

        def values(tokens: Tokens, index: Tensor) -> Tensor:
            return torch.stack([x.per_row(self.shown(tokens, x)) for x in self.losses.values()])

        return each_chunk(
            values, self.student, self.teacher, self.batch, self.rows, self.chunk, self.watch
        )

    def shown(self, tokens: Tokens, loss: TokenLoss) -> Tokens:
        """What a loss sees of a chunk; one that does not ask the teacher: the student alone."""
        own = self.student.head.vocab
        if Signal.LOGITS in loss.needs or (type(tokens) is Tokens and tokens.vocab == own):
            return tokens
        return Tokens(tokens.student, None, tokens.targets, own)

    def states(self) -> Tensor:
        """The student's hidden states of the counted tokens, `[N, D]`."""
        return self.student.hidden.flatten(0, 1)[self.rows]

    def job(self) -> tuple[Job | None, Projection | None]:
        """What the kernel does, and the student's head; None where it cannot."""
        losses = self.losses.values()
        plain, other = _plain(self.student.head), None
        if plain is None or any(p.requires_grad for loss in losses for p in loss.parameters()):
            return None, None
        scope = Scope(self.student, self.teacher, self.batch, self.rows)
        hidden = None
        if scope.head is not None and self.teacher is not None:
            other = _plain(scope.head)
            if other is None:
                return None, None
            with torch.no_grad():
                hidden = self.teacher.hidden.flatten(0, 1)[self.rows]
        watched: list[Tokens] = []

        def tile(
            student: Tensor, teacher: Tensor | None, there: slice, slopes: bool
        ) -> list[tuple[Tensor, Tensor | None]]:
            tokens = watched.pop() if watched else None
            if tokens is None or tokens.student is not student:  # else its softmax is there
                tokens = scope.tokens(there, student, teacher)
            each = [(loss, self.shown(tokens, loss)) for loss in losses]
            if slopes:
                return [loss.with_slope(chunk) for loss, chunk in each]
            return [(loss.per_row(chunk), None) for loss, chunk in each]

        def look(student: Tensor, teacher: Tensor | None, there: slice) -> None:
            assert self.watch is not None
            watched[:] = [scope.tokens(there, student, teacher)]
            self.watch(watched[0], self.rows[there])

        job = Job(
            len(self.losses),
            tile,
            Multiplier(plain),
            None if other is None else Multiplier(other),
            hidden,
            self.chunk or chunk_rows(scope.vocab, FUSED_TILES, plain.weight.device),
            None if self.watch is None else look,
            *self.back_end(scope),
        )
        return job, plain

    def back_end(
        self, scope: Scope
    ) -> tuple[BackEnd, Tensor, Pure | None, tuple[Formula, ...], int]:
        """What computes the tiles, and what it needs to know."""
        asked = {name: (loss.formula(), loss.states_slope) for name, loss in self.losses.items()}
        name = backends.pick(self.rows.device.type, asked, scope.sparse is None)
        known = tuple(formula for formula, _ in asked.values() if formula is not None)
        pure = PureTerms(tuple(self.losses.values()), scope.vocab, self.student.head.vocab)
        return name, scope.targets, pure, known, scope.vocab


def _plain(head: Head) -> Projection | None:
    """The head's tensors, if it says that they are all there is to it."""
    read = getattr(head, "projection", None)
    made = None if read is None else read()
    return made if isinstance(made, Projection) else None
