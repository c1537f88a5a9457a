"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

KEPT = frozenset(
    [
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
        "torch_attn::_varlen_attn",
    ]
)
"""Operations whose results are dear to compute and are kept by selective recomputation."""


def recompute(model: PreTrainedModel, selective: bool = False) -> None:
    """Keep only the inputs of each layer, or (selective) its products and attention as well.

    Source: Chen et al. 2016, arXiv 1604.06174; selective: Korthikanti et al. 2022,
    arXiv 2205.05198, section 5.
    """
    how: dict[str, Any] = {"use_reentrant": False}
    if selective:
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(how)


def _policy(context: Any, operation: Any, *args: Any, **more: Any) -> CheckpointPolicy:
    kept = operation.name() in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
