"""From logits and random numbers to tokens: rows of a batch have settings of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from kd_lightning.types import Sampling

if TYPE_CHECKING:
    from kd_lightning.models.drawing import Draw


def pick(scores: Tensor, shares: Tensor, sampling: Sampling) -> Tensor:
    r"""Tokens `[B]` drawn from logits `[B, V]` by numbers `shares` `[B]` of [0, 1).

    .. math:: y = \min \{ v : \sum_{w \le v} p_w > u \}, \qquad
              p = \mathrm{softmax}(z / T) \text{ on the top-k, then on the nucleus}

    The law is that of adding Gumbel noise and taking the largest, with one random number a token
    in place of one for each id. Sums run in the order of ids, in float64: rounding of a logit moves
    a border by as much and no more.

    Source: inversion: Devroye 1986, Non-Uniform Random Variate Generation, section III.2; the
    nucleus: Holtzman et al. 2019, arXiv 1904.09751, section 3.1.
    """
    logits = scores.double() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = logits.softmax(-1)
    if sampling.top_p < 1:
        falling, ids = p.sort(dim=-1, descending=True, stable=True)
        outside = falling.cumsum(-1) - falling >= sampling.top_p
        outside[:, 0] = False
        p = p.masked_fill(torch.zeros_like(outside).scatter(-1, ids, outside), 0.0)
    sums = p.cumsum(-1)
    found = torch.searchsorted(sums, shares[:, None] * sums[:, -1:], right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1)


class Picking(LogitsProcessor):
    """Leaves to each row the one token that was drawn for it; greedy rows keep their best."""

    def __init__(
        self, draws: Sequence[Draw], width: int, steps: int, vocab: int, keep: bool = False
    ) -> None:
        self._width, self._vocab, self._last, self._keep = width, vocab, steps - 1, keep
        self.logprobs: list[Tensor] = []
        """log p of the tokens `[B]`, step by step; 0 of rows that are kept no longer."""
        kinds: dict[Sampling, list[int]] = {}
        self._shares = torch.zeros(len(draws), steps, dtype=torch.float64)
        for row, draw in enumerate(draws):
            how = draw.sampling
            if how.temperature > 0:
                kind = Sampling(0, how.temperature, how.top_p, how.top_k)
                kinds.setdefault(kind, []).append(row)
                self._shares[row, : draw.room] = draw.shares()
        whole = len(draws)
        self._kinds = {k: None if len(r) == whole else torch.tensor(r) for k, r in kinds.items()}
        """Rows of each kind; None: all of them."""
        self._all, self._rows = whole, torch.arange(whole)

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the present rows `[b]` alone; their scores come from now on."""
        self._shares, self._rows = self._shares[rows], self._rows[rows]
        for kind, chosen in self._kinds.items():
            if chosen is not None:
                self._kinds[kind] = torch.isin(rows, chosen).nonzero()[:, 0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # a process that waits for others (sharded weights) makes more tokens than it asked for
        step = min(int(input_ids.shape[1]) - self._width, self._last)
        chosen = self.choose(step, scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def choose(self, step: int, scores: Tensor) -> Tensor:
        """The tokens `[B]` of a step, from logits `[B, rows]`, `rows >= vocab`."""
        scores = scores[:, : self._vocab]  # what follows are no tokens
        chosen = None
        for kind, rows in self._kinds.items():
            if rows is None:
                chosen = pick(scores, self._shares[:, step].to(scores.device), kind)
                continue
            chosen = scores.argmax(-1) if chosen is None else chosen
            where = rows.to(scores.device)
            shares = self._shares[rows, step].to(scores.device)
            chosen[where] = pick(scores[where], shares, kind)
        if chosen is None:
            chosen = scores.argmax(-1)
        if self._keep:
            upcast = torch.promote_types(scores.dtype, torch.float32)
            logp = scores.to(upcast).log_softmax(-1)
            told = logp.gather(-1, chosen[:, None])[:, 0]
            if len(self._rows) < self._all:
                told = logp.new_zeros(self._all).index_copy_(0, self._rows.to(logp.device), told)
            self.logprobs.append(told)
        return chosen
