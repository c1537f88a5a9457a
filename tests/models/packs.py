"""Tiny models of every family and ragged batches, for the tests of attention and packing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kd_lightning.models import loading
from kd_lightning.models.attention import choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.types import IGNORE, Batch
from tests.models.test_causal import FAMILIES, SMALL
from tests.tiny import tokenizer

CPU = torch.device("cpu")
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MORE: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "mistral": {"sliding_window": 4},
    "gemma": {},
    "gemma2": {
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 4,
        "sliding_window": 4,
    },
    "gemma3_text": {"query_pre_attn_scalar": 4, "sliding_window": 4, "sliding_window_pattern": 2},
    "cohere2": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "olmo": {},
    "phi3": {"pad_token_id": 0, "sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "qwen3_moe": MOE,
    "smollm3": {"pad_token_id": 0},
}
"""Model type to what differs from SMALL; windows shorter than the rows where there are windows."""

SINGLE = ("gemma2", "mixtral", "qwen2_moe", "qwen3_moe")
"""Families that transformers does not compute in float64: soft-capped and mixed ones."""

NO_DROPOUT = {
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}


def ragged(lengths: tuple[int, ...] = (9, 3, 12, 1), learned: bool = True, seed: int = 7) -> Batch:
    """Right-padded rows; the padding's ids are anything, so that reading them shows."""
    torch.manual_seed(seed)
    width = max(1, *lengths)
    ids = torch.randint(4, 80, (len(lengths), width))
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    counted = mask.bool() & learned
    zero = torch.zeros(len(lengths), dtype=torch.long)
    targets = torch.where(counted, ids.roll(-1, 1), IGNORE)
    return Batch(ids, mask, targets, counted.float(), zero, zero)


def family(kind: str, attention: str, packing: bool, **more: Any) -> CausalLM:
    """A model of a family, in float64 if possible; the same weights whatever its attention."""
    fields = {"model_type": kind, **SMALL, **NO_DROPOUT, **MORE[kind], **more}
    config = loading.new_config(fields)
    chosen = choose(attention, packing, config, CPU, torch.float64, trained=True)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=chosen.name
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = model if kind in SINGLE else model.double()
    return CausalLM(model, tokenizer(), attention=chosen)


def unpacked(kind: str, **more: Any) -> CausalLM:
    """The reference: padded, as transformers computes it."""
    return family(kind, "eager" if kind == "gemma2" else "sdpa", False, **more)


def gradient(model: CausalLM, objective: Tensor) -> Tensor:
    """Of the objective by all weights, flat."""
    model.zero_grad()
    objective.backward()
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    assert parts, "no gradient arrived"
    return torch.cat([g.flatten() for g in parts])
