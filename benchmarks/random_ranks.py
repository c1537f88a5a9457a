"""Ranks at random that do not happen to know anything."""

from __future__ import annotations

import torch
from torch import Tensor


def at_random(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Each group's scores in a random order, `[P, K]`."""
    order = torch.rand(scores.shape, generator=generator).argsort(1)
    return scores.gather(1, order)


def turned(scores: Tensor) -> Tensor:
    """The same scores, ranks reversed: the best of a group is its worst, `[P, K]`."""
    ranks = scores.argsort(dim=1, stable=True).argsort(1)
    return scores.sort(1).values.gather(1, scores.shape[1] - 1 - ranks)


def leaning(ranked: Tensor, facts: Tensor) -> Tensor:
    """What each group's ranks say of the facts `[P, K, F]`, `[P, 2 F]`.

    The best answer's less the worst one's, and the covariance with the ranks' scores.
    """
    rows = torch.arange(len(ranked))
    pair = facts[rows, ranked.argmax(1)] - facts[rows, ranked.argmin(1)]
    apart = (ranked.amax(1) > ranked.amin(1))[:, None]
    centred = ranked - ranked.mean(1, keepdim=True)
    return torch.cat([pair * apart, (centred[..., None] * facts).mean(1)], 1)


def balanced(scores: Tensor, facts: Tensor, generator: torch.Generator) -> Tensor:
    """Random ranks that lean to no fact of the answers: the control of what preferences teach.

    A thousand pairs at random prefer one side of a fact in (1000 +- 32) / 2 cases, and a loss that
    sees them several times learns that. So each group's random order is kept or turned, whichever
    keeps the sum of `leaning` over the groups before small (of facts in units of their spread);
    within a group, every order is as likely as its reverse.

    Source of the idea: vector balancing, Spencer 1977, Journal of Combinatorial Theory B 23(1).
    """
    spread = facts.flatten(0, 1).std(0).clamp_min(1e-6)
    facts = facts / spread
    one = at_random(scores, generator)
    other = turned(one)
    leans = torch.stack([leaning(one, facts), leaning(other, facts)], 1)
    total, kept = torch.zeros(leans.shape[-1]), []
    for both in leans:
        sums = total + both
        best = int(sums.square().sum(1).argmin())
        total = sums[best]
        kept.append(best)
    return torch.where(torch.tensor(kept, dtype=torch.bool)[:, None], other, one)
