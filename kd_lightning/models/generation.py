"""Text out of a causal language model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_lightning.errors import KDError
from kd_lightning.models.modes import evaluating
from kd_lightning.models.placement import Placement
from kd_lightning.types import Completion, Sampling

ROWS = 64
"""Prompts that are answered at once."""


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the model's own list and the tokenizer's end token."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [] if own is None else [own]
    assert isinstance(tokenizer.eos_token_id, int)
    return sorted({*listed, tokenizer.eos_token_id})


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    rows: int = ROWS,
    placement: Placement | None = None,
) -> list[Completion]:
    """One answer per prompt, prompts of similar length together, in evaluation mode.

    Where weights are sharded token by token (`placement.in_step`), every rank makes as many calls
    and as many tokens as the busiest one; what it makes beyond its own prompts is thrown away.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(p) for p in prompts), default=0)
    if limit is not None and longest >= limit:
        raise KDError(
            f"a prompt of {longest} tokens leaves no room for an answer in the model's {limit} "
            "positions: shorten the prompts (data.max_length)"
        )
    ends = end_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Completion] = {}
    device = model.device if placement is None else placement.device
    devices = [device] if device.type == "cuda" else []
    in_step = placement is not None and placement.in_step
    calls = -(-len(order) // rows)
    if in_step:
        calls = most(calls, device)
    make = partial(
        _generate, model, tokenizer, sampling=sampling, ends=ends, limit=limit, device=device,
        in_step=in_step,
    )  # fmt: skip
    with evaluating(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        for start in range(0, calls * rows, rows):
            chosen = order[start : start + rows]
            made = make([prompts[i] for i in chosen] or [ends[:1]])
            answers.update(zip(chosen, made, strict=bool(chosen)))
    return [answers[i] for i in range(len(prompts))]


def most(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers; a collective call."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: list[int],
    limit: int | None,
    device: torch.device,
    in_step: bool,
) -> list[Completion]:
    width = max(len(p) for p in prompts)
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else ends[0]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    room = sampling.max_new_tokens if limit is None else limit - width
    settings = copy.deepcopy(model.generation_config) or GenerationConfig()
    settings.update(
        max_new_tokens=min(sampling.max_new_tokens, room),
        max_length=None,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature if sampling.temperature > 0 else 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
    )
    out: Any = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=in_step
    )
    return [_completion(row[width:].tolist(), ends, tokenizer) for row in out]


def _completion(ids: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[: stop + 1]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(text.strip(), tuple(kept), stop is not None)
