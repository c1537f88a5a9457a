"""What a loss is: sums over counted tokens, with the count known before any forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kd_lightning.errors import KDError
from kd_lightning.types import IGNORE, Batch, LossOutput, ModelOutput, Progress, Signal

CHUNK_BYTES = 256 * 2**20
"""Budget for the float32 tiles of one chunk; the token count of a chunk follows from it."""

_TILES = 8
"""Float32 tensors of the logits' shape that a divergence holds at once, about."""


class Loss(nn.Module, ABC):
    """What a step minimises.

    `forward` returns *sums* per term, `count` what each sum is to be divided by. The Distiller
    divides by the count over all ranks and micro-batches, so how a step is split cannot change it.
    """

    needs: frozenset[Signal] = frozenset()
    """Signals of the teacher without which the loss cannot be computed."""

    def begin_step(self, progress: Progress) -> None:
        """Called before each optimizer step, on all ranks alike: schedules move here."""

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        """Called after each optimizer step with the global value of each term: adaptive losses."""

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Term name to what it counts in this batch, `[]` float; no model is needed for it."""

    @abstractmethod
    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        """Term name to its sum over the batch, `[]`, with the same names as `count`."""


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


class TokenLoss(Loss, ABC):
    r"""A loss that is a weighted sum over tokens of something computed from their distributions.

    .. math:: \ell = \sum_n w_n \, \ell_n \Big/ \sum_n w_n
    """

    name = "loss"
    """Under which name the term is logged when it stands alone."""

    def counted(self, batch: Batch) -> Tensor:
        """Weight of every position in this loss, `[B, T]`; 0 where it is not counted."""
        return batch.weights * (batch.targets != IGNORE)

    @abstractmethod
    def per_row(self, tokens: Tokens) -> Tensor:
        """The loss of each token of the chunk, `[N]`."""

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return {self.name: self.counted(batch).sum()}

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        return LossOutput(token_sums({self.name: self}, student, teacher, batch))


class Divergence(TokenLoss, ABC):
    """A distance between next-token distributions: a new one writes `per_token` and nothing else.

    Both distributions are taken over the ids that both models know (padding rows are cut off and
    the rest renormalised) at the loss's own `temperature`.
    """

    needs = frozenset({Signal.LOGITS})
    name = "divergence"

    def __init__(self, temperature: float = 1.0, square_temperature: bool = False) -> None:
        """`temperature` [T]: divides both models' logits in the loss (sampling has its own);
        `square_temperature`: multiply by T^2, value and gradient, so that the gradient's size
        does not fall with T (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2).
        """
        super().__init__()
        if temperature <= 0:
            raise KDError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.square_temperature = square_temperature

    @abstractmethod
    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        """`[N, V]` student and `[N, V]` teacher log-probabilities to `[N]`."""

    def compare(self, log_s: Tensor, log_t: Tensor, targets: Tensor) -> Tensor:
        """`per_token`, for a divergence that also reads the label `[N]`."""
        return self.per_token(log_s, log_t)

    def per_row(self, tokens: Tokens) -> Tensor:
        log_s, log_t = tokens.log_s(self.temperature), tokens.log_t(self.temperature)
        value = self.compare(log_s, log_t, tokens.targets)
        return value * self.temperature**2 if self.square_temperature else value


def chunk_rows(vocab: int) -> int:
    """How many tokens of `vocab` logits fit into the byte budget."""
    return max(1, CHUNK_BYTES // (4 * _TILES * max(1, vocab)))


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
    vocab = student.head.vocab if teacher is None else min(student.head.vocab, teacher.head.vocab)
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

    size = chunk or chunk_rows(vocab)
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


def token_sums(
    losses: Mapping[str, TokenLoss],
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Batch,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Every loss's weighted sum, over one projection of the hidden states.

    A teacher that none of the losses reads is not projected.
    """
    if not any(Signal.LOGITS in loss.needs for loss in losses.values()):
        teacher = None
    weights = {name: loss.counted(batch).flatten() for name, loss in losses.items()}
    anywhere = torch.stack(list(weights.values())).ne(0).any(0)
    rows = anywhere.nonzero().squeeze(-1)

    def sums(tokens: Tokens, index: Tensor) -> Tensor:
        return torch.stack(
            [(weights[name][index] * loss.per_row(tokens)).sum() for name, loss in losses.items()]
        )

    total = over_tokens(sums, student, teacher, batch, rows, chunk)
    return dict(zip(losses, total.unbind(), strict=True))
