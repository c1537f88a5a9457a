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

from kd_lightning.models import recorded
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import end_tokens
from kd_lightning.models.picking import Picking
from kd_lightning.types import Sampling

MARGIN = 8
"""Tokens that are decoded beyond a stop text's length: one character may take several."""

LEAVE = 0.75
"""Rows that have ended leave a batch when at most this share of its rows is left."""

REPLACED = frozenset([
    "_from_model_config", "bos_token_id", "cache_implementation", "do_sample", "eos_token_id",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams",
    "num_return_sequences", "pad_token_id", "temperature", "top_k", "top_p",
    "transformers_version", "use_cache",
])  # fmt: skip
"""Generation settings that say nothing about which tokens are likely, or that a draw replaces."""


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


class Drawn(NamedTuple):
    """What came of a draw."""

    tokens: tuple[int, ...]
    """The end token included where it came."""
    ended: bool
    """By an end token or a stop text; False: at the limit."""
    logprobs: tuple[float, ...]
    """log p of each token at temperature 1, over all ids; (): not asked for."""


class _Ending(StoppingCriteria):
    """Each row ends at its own limit, or at one of its own stop texts."""

    def __init__(
        self, draws: Sequence[Draw], width: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._draws, self._width, self._tokenizer = draws, width, tokenizer
        self._rooms = torch.tensor([draw.room for draw in draws])
        self._listening = [row for row, draw in enumerate(draws) if draw.sampling.stop]
        self.stopped: dict[int, int] = {}
        """Row to the tokens that it had when a stop text stood in it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        made = int(input_ids.shape[1]) - self._width
        over = made >= self._rooms
        for row in self._listening:
            draw = self._draws[row]
            if row in self.stopped or made > draw.room:
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


def changes(model: CausalLM) -> frozenset[str]:
    """The model's own generation settings that change which tokens are likely."""
    settings = model.transformer.generation_config or GenerationConfig()
    told = settings.to_diff_dict().items()
    return frozenset(k for k, v in told if v is not None and v is not False) - REPLACED


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
    picking = Picking(draws, width, steps, model.head.vocab, logprobs)
    if not changes(model) and not before and not in_step and recorded.possible(model, width, steps):
        out = _decoded(model, ids, mask, steps, picking, ending, ends)
    else:
        out = model.transformer.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([*before, picking]),
            stopping_criteria=StoppingCriteriaList([ending]),
            synced_gpus=in_step,
        )
    logp = torch.stack(picking.logprobs, 1).tolist() if logprobs else [[] for _ in draws]
    found = []
    for row, draw in enumerate(draws):
        made = out[row, width:].tolist()[: min(draw.room, ending.stopped.get(row, draw.room))]
        end = next((i for i, token in enumerate(made) if token in ends), None)
        kept = made if end is None else made[: end + 1]
        ended = end is not None or row in ending.stopped
        found.append(Drawn(tuple(kept), ended, tuple(logp[row][: len(kept)])))
    return found


def _decoded(
    model: CausalLM,
    ids: Tensor,
    mask: Tensor,
    steps: int,
    picking: Picking,
    ending: _Ending,
    ends: Sequence[int],
) -> Tensor:
    """Prompts and answers `[B, P + made]`: what generation makes, by steps that are recorded.

    A prompt of several answers is computed once; rows that have ended leave the batch. What stands
    behind an end is anything.
    """
    width = ids.shape[1]
    out = torch.cat([ids, ids.new_zeros(len(ids), steps)], 1)
    both = torch.stack([ids, mask])
    (each, seen), which = both.unique(dim=1, return_inverse=True)  # type: ignore[no-untyped-call]
    if len(each) == len(ids):
        each, seen, which = ids, mask, None
    decoding = recorded.Decoding(model, each, seen, steps)
    scores = decoding.scores
    if which is not None:
        decoding.keep(which)
        scores = scores[which]
    last = torch.zeros(scores.shape[1], dtype=torch.bool)
    last[[end for end in ends if end < len(last)]] = True
    rows = torch.arange(len(ids))
    over = torch.zeros(len(ids), dtype=torch.bool)
    for step in range(steps):
        chosen = picking.choose(step, scores)
        out[rows, width + step] = chosen
        made = out[:, : width + step + 1]
        over |= last[chosen] | ending(made, None)[rows]
        left = len(over) - int(over.sum())
        if step + 1 == steps or not left:
            return made
        if left <= LEAVE * len(rows):
            going = (~over).nonzero()[:, 0]
            rows, chosen, over = rows[going], chosen[going], over[going]
            picking.keep(going)
            decoding.keep(going)
        scores = decoding(chosen)
    return ids
