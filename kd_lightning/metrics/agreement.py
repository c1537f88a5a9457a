"""How close a student is to its teacher, and both to the text: sums that ranks can add up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.losses.chunks import show
from kd_lightning.losses.distributions import Tokens
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.sparse import SparseTokens
from kd_lightning.types import IGNORE, Batch, ModelOutput

STATISTICS = (
    "tokens",
    "ce",
    "kl",
    "reverse_kl",
    "jsd",
    "agreement",
    "entropy",
    "teacher_ce",
    "teacher_entropy",
    "p_label",
    "teacher_p_label",
)
"""Columns of the statistics: a count, then sums over the counted tokens at temperature 1."""

_OF_BOTH = {"kl", "reverse_kl", "jsd", "agreement"}
_OF_TEACHER = {*_OF_BOTH, "teacher_ce", "teacher_entropy", "teacher_p_label"}


class Statistics:
    r"""Sums of :data:`STATISTICS` over groups of tokens, `[S, M]` float64: shown to a loss.

    With teacher p and student q over the shared ids: `kl` = KL(p||q), `reverse_kl` = KL(q||p),
    `jsd` = the Jensen-Shannon divergence at beta = 1/2, `agreement` = argmax p equals argmax q,
    entropies in nats; `ce` and `teacher_ce` are -log p(target), `p_label` and `teacher_p_label`
    p(target). Without a teacher: 0.

    Of a teacher that is known on a few ids the divergences are those of its K + 1 buckets, so lower
    bounds. Of a sampled one, `kl` is an unbiased estimate. What cannot be told is not a number.
    """

    def __init__(self, batch: Batch, groups: Tensor, size: int) -> None:
        """`groups [G, B, T]` names G groups below `size` for every position."""
        self.groups = groups.flatten(1)
        self.ignored = (batch.targets == IGNORE).flatten()
        shape = (size, len(STATISTICS))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=batch.targets.device)

    @classmethod
    def by_skill(cls, batch: Batch, skills: int) -> Statistics:
        """One group for each skill."""
        return cls(batch, batch.skill[:, None].expand_as(batch.targets)[None], skills)

    @torch.no_grad()
    def __call__(self, tokens: Tokens, positions: Tensor) -> None:
        """Add a chunk of tokens at these flat positions; those without a target do not count."""
        table = _columns(tokens).double()
        table = table.masked_fill_(self.ignored[positions][:, None], 0)
        for group in self.groups:
            self.sums.index_add_(0, group[positions], table)


def token_statistics(
    student: ModelOutput, teacher: ModelOutput | None, batch: Batch, skills: int
) -> Tensor:
    """The :class:`Statistics` of each skill, `[S, M]`, in a pass of their own."""
    statistics = Statistics.by_skill(batch, skills)
    show(statistics, student, teacher, batch)
    return statistics.sums


def grouped_statistics(
    student: ModelOutput, teacher: ModelOutput | None, batch: Batch, groups: Tensor, size: int
) -> Tensor:
    """The same over other groups of tokens, `[size, M]`: by row, by position, ..."""
    statistics = Statistics(batch, groups, size)
    show(statistics, student, teacher, batch)
    return statistics.sums


def _columns(tokens: Tokens) -> Tensor:
    """`[N, M]`."""
    plain = tokens
    if isinstance(tokens, SparseTokens):
        plain = Tokens(tokens.student, None, tokens.targets, tokens.vocab)
    log_s = plain.log_s()
    nll = _nll(tokens.student, tokens.targets, log_s)
    values = {"tokens": torch.ones_like(nll), "ce": nll, "entropy": _entropy(log_s)}
    if isinstance(tokens, SparseTokens):
        values |= _of_few(tokens, log_s)
    elif tokens.teacher is not None:
        log_t = tokens.log_t()
        values |= _distances(log_s, log_t)
        values["agreement"] = (log_s.argmax(-1) == log_t.argmax(-1)).to(nll.dtype)
        values["teacher_ce"] = _nll(tokens.teacher, tokens.targets, log_t)
        values["teacher_entropy"] = _entropy(log_t)
    for name in ("", "teacher_"):
        if f"{name}ce" in values:
            values[f"{name}p_label"] = (-values[f"{name}ce"]).exp()
    zero = torch.zeros_like(nll)
    return torch.stack([values.get(name, zero) for name in STATISTICS], -1)


def _distances(log_s: Tensor, log_t: Tensor) -> dict[str, Tensor]:
    p, q = log_t.exp(), log_s.exp()
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return {
        "kl": (p * (log_t - log_s)).sum(-1),
        "reverse_kl": (q * (log_s - log_t)).sum(-1),
        "jsd": 0.5 * (p * (log_t - log_m) + q * (log_s - log_m)).sum(-1),
    }


def _of_few(tokens: SparseTokens, log_s: Tensor) -> dict[str, Tensor]:
    """What can be told of a teacher that is known on a few ids."""
    few = tokens.sparse
    values = {"teacher_ce": -few.label.to(log_s), "teacher_entropy": few.entropy.to(log_s)}
    unknown = torch.full_like(values["teacher_ce"], math.nan)
    values |= dict.fromkeys(_OF_BOTH, unknown)
    if few.support == "sampled":
        if 1.0 not in few.lse:  # the stored entropy is at the shares' temperature
            return values | {"teacher_entropy": unknown}
        if tokens.vocab == few.vocab:
            values["kl"] = ForwardKL().per_row(tokens)
        return values
    best = few.ids.gather(-1, few.logits.argmax(-1, keepdim=True)).squeeze(-1)
    values["agreement"] = (log_s.argmax(-1) == best).to(log_s.dtype)
    if 1.0 in few.lse:
        values |= _distances(*tokens.by("tail").compared(1.0)[:2])
    return values


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def _nll(logits: Tensor, targets: Tensor, log_p: Tensor) -> Tensor:
    """-log p(target) over all rows; a target that the model does not have counts as its last id."""
    inside = targets.clamp_max(logits.shape[-1] - 1)[:, None]
    if log_p.shape == logits.shape:
        return -log_p.gather(-1, inside).squeeze(-1)
    return logits.logsumexp(-1) - logits.gather(-1, inside).squeeze(-1)


def summarise(sums: Tensor, with_teacher: bool = True) -> dict[str, float]:
    """Means per token of one row of :class:`Statistics`, `[M]`, and the perplexities.

    What a teacher cannot tell is left out; a student or teacher that is not a number is not.
    """
    values = dict(zip(STATISTICS, sums.tolist(), strict=True))
    tokens = values.pop("tokens")
    if tokens == 0:
        return {"tokens": 0.0}
    means = {
        name: value / tokens
        for name, value in values.items()
        if with_teacher or name not in _OF_TEACHER
    }
    if not math.isnan(means["ce"] + means.get("teacher_ce", 0.0)):
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    means["perplexity"] = math.exp(min(means["ce"], 700.0))
    if with_teacher:
        means["teacher_perplexity"] = math.exp(min(means["teacher_ce"], 700.0))
    return {**means, "tokens": tokens}


def by_skill(
    sums: Tensor, skills: tuple[str, ...], prefix: str, with_teacher: bool
) -> dict[str, float]:
    """`prefix/kl` over everything and, with more than one skill, `prefix/kl/<skill>` for each."""
    table = {f"{prefix}/{k}": v for k, v in summarise(sums.sum(0), with_teacher).items()}
    if len(skills) > 1:
        for row, skill in zip(sums, skills, strict=True):
            if row[0] > 0:
                means = summarise(row, with_teacher)
                table |= {f"{prefix}/{k}/{skill}": v for k, v in means.items()}
    return table
