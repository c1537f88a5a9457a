"""The nouns that every part of the library shares.

Shape legend: `B` sequences, `T` tokens, `V` vocabulary, `D` width (`D_s` student, `D_t` teacher),
`K` top-k, `L` layers, `N` counted tokens of the batch, `S` skills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kd_lightning.errors import KDError

IGNORE = -100
"""Target of a position that nothing is learned from."""

CONDITION = "condition"
"""Field of an example's `meta`: what an answer to it was drawn under, for rewards."""


class Signal(StrEnum):
    """What a loss may need and a teacher may offer."""

    LOGITS = "logits"
    TOPK = "topk"
    HIDDEN = "hidden"
    ATTENTION = "attention"
    LOGPROB = "logprob"
    TEXT = "text"


class Source(IntEnum):
    """Whose words a row is made of. Hard-label cross-entropy never counts student text."""

    GOLD = 0
    TEACHER = 1
    STUDENT = 2


@dataclass(frozen=True)
class Message:
    """One turn of a conversation (the Hugging Face convention)."""

    role: str
    """system, user, assistant or tool."""
    content: str
    """The text of the turn."""
    weight: float | None = None
    """How much the turn's tokens count in the loss; None: 1 for the assistant, 0 for the others."""

    @property
    def learned(self) -> float:
        """The weight that holds for this turn."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.role == "assistant" else 0.0


@dataclass(frozen=True)
class Example:
    """One conversation with what is needed to judge an answer to it."""

    id: str
    """Unique within its data set; named in every error about the row."""
    messages: tuple[Message, ...]
    """The whole conversation; the last assistant turn is the gold answer."""
    references: tuple[str, ...] = ()
    """Accepted answers for grading; empty: the gold answer is the only one."""
    skill: str = ""
    """Name under which its metrics are logged."""
    source: Source = Source.GOLD
    """Whose words the assistant turns are."""
    plain: bool = False
    """True: no template; the single message's text is the whole document (language modelling)."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Licence, generator, provenance, and whatever a grader needs."""

    @classmethod
    def dialogue(
        cls, *, id: str, user: str, assistant: str, system: str | None = None, **more: Any
    ) -> Example:
        """A single exchange: optional system prompt, one question, one answer."""
        head = (Message("system", system),) if system else ()
        return cls(id, (*head, Message("user", user), Message("assistant", assistant)), **more)

    @classmethod
    def document(cls, *, id: str, text: str, **more: Any) -> Example:
        """A text without roles, learned as a whole."""
        return cls(id, (Message("assistant", text),), plain=True, **more)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What a model is asked: the turns before the answer."""
        return self.messages[:-1] if self._answered else self.messages

    @property
    def answer(self) -> str:
        """The last turn where it is the assistant's: the gold answer ('' where there is none)."""
        return self.messages[-1].content if self._answered else ""

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"

    @property
    def accepted(self) -> tuple[str, ...]:
        """The texts that a grader compares with."""
        return self.references or (self.answer,)


@dataclass(frozen=True)
class Prompt:
    """What a generator is asked: a conversation without its last answer, or a text to continue."""

    messages: tuple[Message, ...]
    """The turns; the last one is not the assistant's."""
    plain: bool = False
    """True: no template; the single message's text is continued as it is."""

    @classmethod
    def user(cls, text: str, system: str | None = None) -> Prompt:
        """One question."""
        head = (Message("system", system),) if system else ()
        return cls((*head, Message("user", text)))

    @classmethod
    def text(cls, text: str) -> Prompt:
        """A text to go on with."""
        return cls((Message("user", text),), plain=True)


@dataclass(frozen=True)
class Sampling:
    """How text is drawn from a model."""

    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0: greedy; otherwise the softmax temperature of sampling (not of the loss)."""
    top_p: float = 1.0
    """Nucleus sampling: the smallest set of tokens with at least this mass."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0: all."""
    seed: int = 0
    """Same seed, same prompt, same model: same text."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends; they are not part of it."""


@dataclass(frozen=True)
class Completion:
    """One answer drawn from a model."""

    text: str
    """Decoded, special tokens removed."""
    tokens: tuple[int, ...]
    """Generated ids, the end token included where it came."""
    finished: bool
    """False: cut at the length limit, without an end token."""
    logprobs: tuple[float, ...] = ()
    """log p of each generated token at temperature 1, in nats; (): not asked for."""


class Batch:
    """What one rank contributes to one optimizer step. The causal shift is already made.

    Not a dataclass: Lightning would look into one and round its weights in half precision.
    """

    def __init__(
        self,
        input_ids: Tensor,  # [B, T] int64
        attention_mask: Tensor,  # [B, T] int64, 1 where there is a token
        targets: Tensor,  # [B, T] int64: the token that position t must predict, or IGNORE
        weights: Tensor,  # [B, T] float32: how much that token counts; 0 where targets is IGNORE
        source: Tensor,  # [B] int64: a Source
        skill: Tensor,  # [B] int64: index into the data module's `skills`
        ids: tuple[str, ...] = (),  # the rows' names, for messages
        examples: tuple[Example, ...] = (),  # the rows themselves, for graders
        keys: tuple[bytes, ...] = (),  # digests of the rows' tokens and masks, for caches
        lengths: tuple[int, ...] = (),  # real tokens of each row; (): counted when asked for
        group: Tensor | None = None,  # [B] int64: answers to one prompt have one number, in a row
        reward: Tensor | None = None,  # [B] float: how good an answer is; nan: nobody judged it
        behaviour: Tensor | None = None,  # [B, T] log p(target) of the policy that drew the words
        reference: Tensor | None = None,  # [B, T] or [B] (sums): log p(target) of a frozen model
        advantages: Tensor | None = None,  # [B, T] or [B]: in place of those made from rewards
        answers: tuple[Completion, ...] = (),  # what was drawn, beside `examples`, for graders
        shared: tuple[int, ...] = (),  # leading tokens that a row has in common with the row above
        values: Tensor | None = None,  # [B, T] what a value head expected when the words were drawn
    ) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.targets = targets
        self.weights = weights
        self.source = source
        self.skill = skill
        self.ids = ids
        self.examples = examples
        self.keys = keys
        self.group = group
        self.reward = reward
        self.behaviour = behaviour
        self.reference = reference
        self.advantages = advantages
        self.answers = answers
        self.shared = shared
        self.values = values
        if lengths:
            vars(self)["lengths"] = lengths

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each row, on the host: shapes follow without waiting for a device."""
        return tuple(self.attention_mask.sum(1).tolist())

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def __repr__(self) -> str:
        return f"Batch({len(self)} rows, {self.input_ids.shape[1]} columns)"

    def replace(self, **changes: Any) -> Batch:
        """The same batch with other values in some fields."""
        if "attention_mask" in changes:
            changes.setdefault("lengths", ())
        return Batch(**{**vars(self), **changes})

    def _map(self, on_tensor: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {k: on_tensor(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return self.replace(**tensors, lengths=self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; itself where it is there."""
        if self.input_ids.device == torch.device(device):
            return self
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Page-locked copies, for asynchronous transfers (DataLoader's convention)."""
        return self._map(Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop`, without the columns that hold only their padding."""
        width = max((1, *self.lengths[start:stop]))
        cut: dict[str, Any] = {
            name: value[start:stop, :width]
            if isinstance(value, Tensor) and value.ndim > 1
            else value[start:stop]
            for name, value in vars(self).items()
            if value is not None
        }
        return Batch(**cut)

    def split(
        self, rows: int | None = None, tokens: int | None = None, padded: bool = True
    ) -> list[Batch]:
        """Micro-batches of at most `rows` rows, or of at most `tokens` tokens.

        Tokens count with the padding that makes rows alike, or, not `padded`, without it. A row
        longer than `tokens` forms a micro-batch of its own, and so does a group that is larger than
        a limit: answers that are compared stay together. With neither limit: the batch.
        """
        if rows is None and tokens is None:
            return [self]
        cuts, start, longest, total = [0], 0, 0, 0
        for first, last in self._units():
            lengths = self.lengths[first:last]
            longest, total = max(longest, *lengths), total + sum(lengths)
            full = rows is not None and last - start > rows
            taken = longest * (last - start) if padded else total
            if first > start and (full or (tokens is not None and taken > tokens)):
                cuts.append(first)
                start, longest, total = first, max(lengths), sum(lengths)
        return [self.rows(a, b) for a, b in zip(cuts, [*cuts[1:], len(self)], strict=True)]

    def _units(self) -> list[tuple[int, int]]:
        """First row and end of what may not be cut: rows, or groups of them."""
        if self.group is None:
            return [(i, i + 1) for i in range(len(self))]
        groups = self.group.tolist()
        starts = [i for i, g in enumerate(groups) if i == 0 or g != groups[i - 1]]
        if len({groups[i] for i in starts}) < len(starts):
            raise KDError(
                "the rows of a group must stand side by side in a batch: sort the rows by group"
            )
        return list(zip(starts, [*starts[1:], len(groups)], strict=True))

    def masked(self) -> Batch:
        """The first row with nothing to learn: keeps a rank in step with the others."""
        row = self.rows(0, 1)
        return row.replace(
            targets=torch.full_like(row.targets, IGNORE),
            weights=torch.zeros_like(row.weights),
        )


Support = Literal["tail", "both_renormalised", "teacher_renormalised", "unnormalised", "sampled"]
"""How a distribution on a few ids is compared with a student's on all of them.

`tail`: everything outside counts as one more id, on both sides; `both_renormalised` and
`teacher_renormalised`: the few ids' shares, of both or of the teacher alone; `unnormalised`: as
they are; `sampled`: drawn ids with unbiased shares, for losses that are linear in the teacher.
"""


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's next-token distribution on a few ids, at the counted positions of a batch.

    Positions are those with a target (`targets != IGNORE`), row by row: M of them.
    """

    ids: Tensor  # [M, K] int64, no id twice in a row
    logits: Tensor  # [M, K] float32; -inf: an empty slot (its id is any). sampled: log of the share
    lse: Mapping[float, Tensor]  # temperature -> [M] float32: logsumexp(z / T) over all shared ids
    label: Tensor  # [M] float32: log p(target) at temperature 1
    entropy: Tensor  # [M] float32, nats, of all ids at temperature 1; sampled: at the shares' own
    vocab: int
    """Ids that the teacher's tokenizer knows: the log-sum-exps run over these."""
    support: Support = "tail"
    """How a student is compared with it."""


class Asking(Protocol):
    """What a teacher has to know of the loss that asks it."""

    needs: frozenset[Signal]

    @property
    def temperatures(self) -> frozenset[float]:
        """Temperatures at which the teacher's distribution is read."""
        ...

    @property
    def linear_in_teacher(self) -> bool:
        """Whether unbiased estimates of the teacher's probabilities give unbiased gradients."""
        ...


class Head(Protocol):
    """From hidden states to logits, with everything that the model does after its last layer."""

    vocab: int
    """Number of ids that the tokenizer knows; rows beyond are padding."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[N, D]` to logits `[N, rows]`, `rows >= vocab`."""
        ...


@dataclass
class ModelOutput:
    """What a model's forward gives to a loss; logits exist only where somebody projects."""

    hidden: Tensor  # [B, T, D] after the final norm
    head: Head  # D -> V
    layers: tuple[Tensor, ...] = ()  # L x [B, T, D], only if a loss needs them
    attention: tuple[Tensor, ...] = ()  # L x [B, heads, T, T], only if a loss needs them
    sparse: SparseTargets | None = None  # in place of hidden states and head: a few ids

    @property
    def logits(self) -> Tensor:
        """`[B, T, rows]`, projected anew at each access: for tests and small models."""
        return self.head(self.hidden)


@dataclass(frozen=True)
class LossOutput:
    """Sums, never means: the Distiller divides each term by its own global count."""

    terms: Mapping[str, Tensor]  # name -> [] sum, already weighted
    logs: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [] detached sum


@dataclass(frozen=True)
class Progress:
    """Where a run stands; equal on all ranks."""

    step: int
    """Optimizer steps done."""
    total: int
    """Optimizer steps planned; 0 where unknown."""

    @property
    def fraction(self) -> float:
        """0 at the start, 1 at the end (0 where the end is unknown)."""
        return min(1.0, self.step / self.total) if self.total > 0 else 0.0


def iterate(batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each micro-batch with whether it is the last."""
    for i, batch in enumerate(batches):
        yield batch, i == len(batches) - 1
