"""Answers that are each drawn for themselves: a batch's rows have settings of their own."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import end_tokens
from kd_lightning.types import Sampling

MARGIN = 8
"""Tokens that are decoded beyond a stop text's length: one character may take several."""


@dataclass(frozen=True)
class Draw:
    """One answer to be drawn."""

    prompt: tuple[int, ...]
    sampling: Sampling
    room: int
    """The most tokens that it may have."""
    number: int = 0
    """Which of a prompt's answers it is."""

    def shares(self) -> Tensor:
        """One number of [0, 1) for each token `[room]`: of seed, number and prompt alone."""
        told = json.dumps([self.sampling.seed, self.number, self.prompt]).encode()
        seed = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little") // 2
        source = torch.Generator().manual_seed(seed)
        return torch.rand(self.room, generator=source, dtype=torch.float64)


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


class Drawn(NamedTuple):
    """What came of a draw."""

    tokens: tuple[int, ...]
    """The end token included where it came."""
    ended: bool
    """By an end token or a stop text; False: at the limit."""
    logprobs: tuple[float, ...]
    """log p of each token at temperature 1, over all ids; (): not asked for."""


class _Picking(LogitsProcessor):
    """Leaves to each row the one token that was drawn for it; greedy rows keep their scores."""

    def __init__(
        self, draws: Sequence[Draw], width: int, steps: int, vocab: int, keep: bool = False
    ) -> None:
        self._width, self._vocab, self._last, self._keep = width, vocab, steps - 1, keep
        self.logprobs: list[Tensor] = []
        """log p of the tokens `[B]`, step by step."""
        self._kinds: dict[Sampling, list[int]] = {}
        self._shares = torch.zeros(len(draws), steps, dtype=torch.float64)
        for row, draw in enumerate(draws):
            how = draw.sampling
            if how.temperature > 0:
                kind = Sampling(0, how.temperature, how.top_p, how.top_k)
                self._kinds.setdefault(kind, []).append(row)
                self._shares[row, : draw.room] = draw.shares()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self._vocab :] = -torch.inf  # rows of the head that are no tokens
        # a process that waits for others (sharded weights) makes more tokens than it asked for
        step = min(int(input_ids.shape[1]) - self._width, self._last)
        told = scores.clone() if self._keep else scores
        for kind, rows in self._kinds.items():
            where = torch.tensor(rows, device=scores.device)
            shares = self._shares[rows, step].to(scores.device)
            drawn = pick(scores[where], shares, kind)
            scores[where] = -torch.inf
            scores[where, drawn] = 0.0
        if self._keep:
            upcast = torch.promote_types(told.dtype, torch.float32)
            logp = told.to(upcast).log_softmax(-1)
            self.logprobs.append(logp.gather(-1, scores.argmax(-1, keepdim=True))[:, 0])
        return scores


class _Ending(StoppingCriteria):
    """Each row ends at its own limit, or at one of its own stop texts."""

    def __init__(
        self, draws: Sequence[Draw], width: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._draws, self._width, self._tokenizer = draws, width, tokenizer
        self._rooms = torch.tensor([draw.room for draw in draws])
        self.stopped: dict[int, int] = {}
        """Row to the tokens that it had when a stop text stood in it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        made = int(input_ids.shape[1]) - self._width
        over = made >= self._rooms
        for row, draw in enumerate(self._draws):
            if not draw.sampling.stop or row in self.stopped or made > draw.room:
                continue
            longest = max(len(stop.encode()) for stop in draw.sampling.stop)
            start = max(self._width, self._width + made - longest - MARGIN)
            text = self._tokenizer.decode(input_ids[row, start:], skip_special_tokens=True)
            assert isinstance(text, str)
            if any(stop in text for stop in draw.sampling.stop):
                self.stopped[row] = made
        for row in self.stopped:
            over[row] = True
        return over.to(input_ids.device)


def draw_all(model: CausalLM, draws: Sequence[Draw]) -> list[tuple[tuple[int, ...], bool]]:
    """Ids of one answer for each, and whether it came to an end; one batch, in evaluation mode."""
    return [(drawn.tokens, drawn.ended) for drawn in draw(model, draws)]


@torch.no_grad()
def draw(
    model: CausalLM,
    draws: Sequence[Draw],
    logprobs: bool = False,
    before: Sequence[LogitsProcessor] = (),
    in_step: bool = False,
) -> list[Drawn]:
    """One answer for each draw, all in one batch, in evaluation mode.

    `logprobs`: keep those of what the tokens are drawn from. `before`: changes the scores first.
    `in_step`: other processes draw with the same sharded weights, as many tokens as the longest.

    The model's own penalties and lists of suppressed tokens hold (its generation settings); how
    tokens are drawn is the request's alone.
    """
    ends = end_tokens(model.transformer, model.tokenizer)
    given = model.tokenizer.pad_token_id
    pad = given if isinstance(given, int) else ends[0]
    width = max(len(d.prompt) for d in draws)
    steps = max(d.room for d in draws)
    left = [width - len(d.prompt) for d in draws]
    rows = zip(left, draws, strict=True)
    ids = torch.tensor([[pad] * n + list(d.prompt) for n, d in rows], device=model.device)
    mask = (torch.arange(width)[None] >= torch.tensor(left)[:, None]).long().to(model.device)
    settings = copy.deepcopy(model.transformer.generation_config) or GenerationConfig()
    settings.update(
        max_new_tokens=steps,
        max_length=None,
        min_length=0,
        min_new_tokens=None,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        num_beams=1,
        num_return_sequences=1,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
    )
    ending = _Ending(draws, width, model.tokenizer)
    picking = _Picking(draws, width, steps, model.head.vocab, logprobs)
    out: Any = model.transformer.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList([*before, picking]),
        stopping_criteria=StoppingCriteriaList([ending]),
        synced_gpus=in_step,
    )
    told = torch.stack(picking.logprobs, 1).tolist() if logprobs else [[] for _ in draws]
    found = []
    for row, draw in enumerate(draws):
        made = out[row, width:].tolist()[: min(draw.room, ending.stopped.get(row, draw.room))]
        end = next((i for i, token in enumerate(made) if token in ends), None)
        kept = made if end is None else made[: end + 1]
        ended = end is not None or row in ending.stopped
        found.append(Drawn(tuple(kept), ended, tuple(told[row][: len(kept)])))
    return found
