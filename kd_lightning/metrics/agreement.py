"""How close a student is to its teacher, and both to the text: sums that ranks can add up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.losses.tokens import Tokens, over_tokens
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
)
"""Columns of the statistics: a count, then sums over the counted tokens at temperature 1."""

CACHE_BYTES = 2**19
"""Size of a tile that stays in a processor's cache; its statistics then take half the time."""

_OF_TEACHER = {"kl", "reverse_kl", "jsd", "agreement", "teacher_ce", "teacher_entropy"}


@torch.no_grad()
def token_statistics(
    student: ModelOutput, teacher: ModelOutput | None, batch: Batch, skills: int
) -> Tensor:
    r"""Sums of :data:`STATISTICS` over the tokens of each skill, `[S, M]` float64.

    With teacher p and student q over the shared ids: `kl` = KL(p||q), `reverse_kl` = KL(q||p),
    `jsd` = the Jensen-Shannon divergence at beta = 1/2, `agreement` = argmax p equals argmax q,
    entropies in nats; `ce` and `teacher_ce` are -log p(target). Without a teacher: 0.
    """
    groups = batch.skill[:, None].expand_as(batch.targets)[None]
    return grouped_statistics(student, teacher, batch, groups, skills)


@torch.no_grad()
def grouped_statistics(
    student: ModelOutput, teacher: ModelOutput | None, batch: Batch, groups: Tensor, size: int
) -> Tensor:
    """The same sums over other groups of tokens, `[size, M]`: by row, by position, ...

    `groups [G, B, T]` names G groups below `size` for every position.
    """
    rows = (batch.targets.flatten() != IGNORE).nonzero().squeeze(-1)
    flat = groups.flatten(1)

    def sums(tokens: Tokens, index: Tensor) -> Tensor:
        table = _columns(tokens).double()
        out = table.new_zeros(size, len(STATISTICS))
        for group in flat:
            out.index_add_(0, group[index], table)
        return out

    few = max(64, CACHE_BYTES // (4 * student.head.vocab))
    chunk = few if rows.device.type == "cpu" else None
    return over_tokens(sums, student, teacher, batch, rows, chunk)


def _columns(tokens: Tokens) -> Tensor:
    log_s = tokens.log_s()
    nll = tokens.nll()
    one, zero = torch.ones_like(nll), torch.zeros_like(nll)
    q = log_s.exp()
    entropy = -(q * log_s).sum(-1)
    if tokens.teacher is None:
        return torch.stack([one, nll, zero, zero, zero, zero, entropy, zero, zero], -1)
    log_t = tokens.log_t()
    p = log_t.exp()
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return torch.stack(
        [
            one,
            nll,
            (p * (log_t - log_s)).sum(-1),
            (q * (log_s - log_t)).sum(-1),
            0.5 * (p * (log_t - log_m) + q * (log_s - log_m)).sum(-1),
            (log_s.argmax(-1) == log_t.argmax(-1)).to(nll.dtype),
            entropy,
            tokens.teacher.logsumexp(-1)
            - tokens.teacher.gather(-1, _inside(tokens)[:, None]).squeeze(-1),
            -(p * log_t).sum(-1),
        ],
        -1,
    )


def _inside(tokens: Tokens) -> Tensor:
    """Targets as row numbers of the teacher; one that it does not know counts as its last id."""
    assert tokens.teacher is not None
    return tokens.targets.clamp_max(tokens.teacher.shape[-1] - 1)


def summarise(sums: Tensor, with_teacher: bool = True) -> dict[str, float]:
    """Means per token of one row of :func:`token_statistics`, `[M]`, and the perplexities."""
    values = dict(zip(STATISTICS, sums.tolist(), strict=True))
    tokens = values.pop("tokens")
    if tokens == 0:
        return {"tokens": 0.0}
    means = {
        name: value / tokens
        for name, value in values.items()
        if with_teacher or name not in _OF_TEACHER
    }
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
