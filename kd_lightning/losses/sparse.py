r"""A teacher that is known on a few ids, and the student on these and on what is left.

Any divergence then runs on K + 1 probabilities: the ids' and, on both sides, the rest's. By the
student's logits, with B(v) the bucket of id v and Q its mass,

.. math:: T \frac{\partial D}{\partial z_v} = r_{B(v)} \frac{q_v}{Q_{B(v)}} - q_v \sum_j r_j

so outside of the ids it is one number a token times the student's distribution.

Source: Anshumann et al. 2025 (RS-KD), arXiv 2503.16870: the tail as a "ghost token", and unbiased
sampled shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kd_lightning.errors import KDError
from kd_lightning.losses.distributions import Tokens
from kd_lightning.types import SparseTargets, Support

NOTHING = -1e9
"""Log-probability of what is not there (an empty slot, a tail without ids), of both models alike:
equal and impossible, it adds 0 to any divergence and to any gradient."""


@dataclass
class Few:
    """Both models on the ids of a chunk, at one temperature."""

    ids: Tensor  # [N, J] columns of `outside`; V: an empty slot
    empty: Tensor  # [N, J] bool
    teacher: Tensor  # [N, J] log-probabilities, NOTHING where empty; sampled: log-shares
    student: Tensor  # [N, J] logits over T, NOTHING where empty
    outside: Tensor  # [N, V + 1] the student's logits over T, NOTHING at the ids and in the end
    rest: Tensor  # [N, 1] log-sum-exp of `outside`
    whole: Tensor  # [N, 1] log-sum-exp of all the student's logits over T
    place: Tensor  # [N] the label's slot; the last one where there is none


class SparseTokens(Tokens):
    """A chunk of tokens whose teacher is a few ids: `log_s` and `log_t` are over these buckets."""

    def __init__(self, student: Tensor, sparse: SparseTargets, targets: Tensor, vocab: int) -> None:
        """`student [N, V_s]` logits, `sparse` with N rows, `vocab`: the ids that both know."""
        super().__init__(student, None, targets, vocab)
        self.sparse = sparse
        self.complete = sparse.support in ("tail", "both_renormalised")
        self._few: dict[tuple[float, bool], Few] = {}

    def log_s(self, temperature: float = 1.0) -> Tensor:
        """Student log-probabilities of the buckets, `[N, K]`, or `[N, K + 1]` with a tail."""
        return self._student(self.few(temperature, False))

    def log_t(self, temperature: float = 1.0) -> Tensor:
        """Teacher log-probabilities of the buckets, as many."""
        return self._teacher(self.few(temperature, False), temperature)

    def compared(self, temperature: float, label: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The buckets; `label`: a label that is not among the ids gets a bucket of its own."""
        few = self.few(temperature, label)
        return self._student(few), self._teacher(few, temperature), few.place

    def settled(self, values: Tensor, temperature: float) -> Tensor:
        """Sampled shares do not tell the teacher's entropy, which a KL subtracts: it is stored."""
        if self.sparse.support != "sampled":
            return values
        log_share = self.few(temperature, False).teacher
        return values - (log_share.exp() * log_share).sum(-1) - self.sparse.entropy.to(values)

    def by_logits(self, slope: Tensor, temperature: float, label: bool = False) -> Tensor:
        few, count = self.few(temperature, label), slope.shape[-1]
        log_s = self._student(few)
        total = slope.sum(-1, keepdim=True)
        slope = slope.addcmul_(log_s.exp(), total, value=-1)
        if self.sparse.support == "both_renormalised":
            out = torch.zeros_like(few.outside)
        else:
            tail = self.sparse.support == "tail"
            mass = slope[:, -1:] if tail else -(few.rest - few.whole).exp() * total
            out = (few.outside - few.rest).exp_().mul_(mass)
        slots = min(count, few.ids.shape[-1])
        out.scatter_add_(-1, few.ids, slope[:, :slots].masked_fill(few.empty, 0))
        return out[:, : self.vocab]

    def with_leaf(self) -> Tokens:
        leaf = self.student.detach().requires_grad_()
        same = SparseTokens(leaf, self.sparse, self.targets, self.vocab)
        same.places = self.places
        return same

    def by(self, support: Support) -> SparseTokens:
        """The same tokens, compared in another way."""
        same = SparseTokens(
            self.student, replace(self.sparse, support=support), self.targets, self.vocab
        )
        same._few = self._few
        return same

    def few(self, temperature: float, label: bool) -> Few:
        """Both models on the ids, made once."""
        key = (temperature, label)
        if key not in self._few:
            self._few[key] = self._make(temperature, label)
        return self._few[key]

    def _make(self, temperature: float, label: bool) -> Few:
        ids, log_t, empty, place = self._slots(temperature, label)
        ids = ids.masked_fill(empty, self.vocab)
        shared = self.student[:, : self.vocab]
        shared = shared / temperature if temperature != 1.0 else shared
        padded = pad(shared, (0, 1), value=NOTHING)
        student = padded.gather(-1, ids)
        put = padded.scatter if padded.requires_grad else padded.scatter_
        outside = put(-1, ids, NOTHING)
        rest = outside.logsumexp(-1, keepdim=True)
        whole = torch.logaddexp(student.logsumexp(-1, keepdim=True), rest)
        return Few(ids, empty, log_t, student, outside, rest, whole, place)

    def _slots(self, temperature: float, label: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids, the teacher's log-probabilities, which slots are empty, the label's slot."""
        sparse, own = self.sparse, self.targets[:, None]
        ids, logits = sparse.ids, sparse.logits.to(self.student.dtype)
        empty = logits.isneginf() | (ids >= sparse.vocab)
        if label:
            known = ((ids == own) & ~empty).any(-1, keepdim=True)
            alone = sparse.label[:, None].to(logits) + self._lse(1.0)
            ids, logits = torch.cat([ids, own], -1), torch.cat([logits, alone], -1)
            empty = torch.cat([empty, known | (own >= sparse.vocab)], -1)
        lse = self._lse(temperature)
        log_t = logits if sparse.support == "sampled" else logits / temperature - lse
        if self.vocab < sparse.vocab:  # what the student does not know is shared by the others
            foreign = (ids >= self.vocab) & ~empty
            gone = log_t.exp().masked_fill(~foreign, 0).sum(-1, keepdim=True)
            log_t = log_t - torch.log1p(-gone.clamp_max(1 - _resolution(sparse.logits)))
            empty = empty | foreign
        here = (ids == own) & ~empty
        place = torch.where(here.any(-1), here.int().argmax(-1), ids.shape[-1] - 1)
        return ids, log_t.masked_fill(empty, NOTHING), empty, place

    def _lse(self, temperature: float) -> Tensor:
        stored = self.sparse.lse
        if temperature not in stored:
            raise KDError(
                f"the loss reads the teacher at temperature {temperature}, its stored targets "
                f"hold {', '.join(str(t) for t in sorted(stored))}: store that one as well"
            )
        return stored[temperature][:, None].to(self.student.dtype)

    def _student(self, few: Few) -> Tensor:
        if self.sparse.support == "both_renormalised":
            return few.student.log_softmax(-1).masked_fill(few.empty, NOTHING)
        at_ids = (few.student - few.whole).masked_fill(few.empty, NOTHING)
        if self.sparse.support != "tail":
            return at_ids
        tail = (few.rest - few.whole).masked_fill(_nothing_left(few), NOTHING)
        return torch.cat([at_ids, tail], -1)

    def _teacher(self, few: Few, temperature: float) -> Tensor:
        support = self.sparse.support
        if support in ("both_renormalised", "teacher_renormalised"):
            return few.teacher.log_softmax(-1).masked_fill(few.empty, NOTHING)
        if support != "tail":
            return few.teacher
        left = 1 - few.teacher.exp().sum(-1, keepdim=True)
        least = _resolution(self.sparse.logits)
        unseen = (few.rest - few.whole).detach().clamp_max(math.log(least))
        tail = torch.where(left > least, left.clamp_min(least).log(), unseen)
        return torch.cat([few.teacher, tail.masked_fill(_nothing_left(few), NOTHING)], -1)


def _nothing_left(few: Few) -> Tensor:
    """Where every id has a slot, `[N, 1]`."""
    return few.rest < NOTHING / 2


def _resolution(stored: Tensor) -> float:
    """The largest tail that rounding can make of 0; below it, the student's is as good a guess."""
    wide = stored.dtype == torch.float64
    return 8 * torch.finfo(torch.float64 if wide else torch.float32).eps
