"""Which attention computes a model, and what each one needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import transformers.utils
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from kd_lightning.errors import KDError
from kd_lightning.models import varlen

Packing = bool | Literal["auto"]
"""Whether padding is left out: `auto`, where the attention can do without it at no cost."""

HALF = (torch.bfloat16, torch.float16)

PACKS = frozenset(
    [
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "opt",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
    ]
)
"""Model types that are tested to hand sequence borders down to the attention."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention, as transformers calls it, and what it needs."""

    packs: Literal["borders", "host", "mask"]
    """How it keeps packed sequences apart: by borders on the device, by borders on the host, or by
    a mask with a place for every pair of tokens."""
    gpu: tuple[int, int] | None = None
    """Least CUDA capability; None: any device, any data type."""
    package: str | None = None
    """What has to be installed, as pip calls it."""
    installed: Callable[[], bool] = lambda: True
    """Whether it is."""
    softcap: bool = True
    """Whether attention scores can be capped (Gemma 2)."""
    dropout: bool = True
    """Whether attention weights can be dropped while training."""


def _flash(version: int) -> Callable[[], bool]:
    name = f"is_flash_attn_{version}_available"
    return lambda: bool(getattr(transformers.utils, name, lambda: False)())


def _torch_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


TABLE: dict[str, Implementation] = {
    "flash_attention_4": Implementation(
        "borders", (9, 0), "flash-attn-4", _flash(4), softcap=False, dropout=False
    ),
    "flash_attention_3": Implementation(
        "borders", (9, 0), "flash-attn-3", _flash(3), dropout=False
    ),
    "flash_attention_2": Implementation("borders", (8, 0), "flash-attn", _flash(2)),
    "torch_varlen": Implementation(
        "borders", (8, 0), "a newer torch", _torch_varlen, softcap=False, dropout=False
    ),
    "per_sequence": Implementation("host"),
    "flex_attention": Implementation("mask"),
    "sdpa": Implementation("mask", softcap=False),
    "eager": Implementation("mask"),
}
"""All that is known by name, best first. Other names (hub kernels) go to transformers as they are,
and are not packed."""

BY_ITSELF = ("flash_attention_3", "flash_attention_2", "torch_varlen", "sdpa", "eager")
"""What `auto` tries on a GPU, in this order; a pre-release (version 4) only by name."""


CALL = 10
"""Tokens of padding in a row that cost a small model on a CPU as much as a call of its own does."""


@dataclass(frozen=True)
class Attention:
    """What was chosen for a model."""

    name: str
    """As transformers calls it."""
    why: str
    """In a few words, for the line at set-up."""
    packs: bool = False
    """Whether sequences are put one behind the other, without padding."""
    least: int = 0
    """A batch with less padding than this for each row stays as it is."""

    def __str__(self) -> str:
        return f"{self.name} ({self.why}), {'packed' if self.packs else 'padded'}"

    @property
    def borders(self) -> Literal["borders", "host", "mask"]:
        """How packed sequences are kept apart."""
        return TABLE[self.name].packs


def choose(
    wanted: str,
    packing: Packing,
    config: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    trained: bool,
    mixed: bool = False,
) -> Attention:
    """The attention of a model, with a sentence where what is wanted cannot be.

    Args:
        wanted: An implementation's name, or `auto`.
        packing: Whether padding is left out.
        config: The model's.
        device: Where it will compute.
        dtype: In which type attention is computed.
        trained: Whether dropout is on.
        mixed: Whether the weights are in float32, and half precision is autocast's: outside of it
            flash attention computes nothing.
    """
    register()
    text = config.get_text_config()
    if packing is True and text.model_type not in PACKS:
        raise KDError(
            f"packing is not known to be exact for {text.model_type}: write packing: auto"
        )
    possible = packing is not False and text.model_type in PACKS
    if wanted != "auto":
        return _named(wanted, packing, possible, text, device, dtype, trained)
    if text.model_type not in PACKS:
        return Attention("auto", "transformers' own choice")
    if device.type != "cuda":
        name = "per_sequence" if possible else "eager" if _capped(text) else "sdpa"
        least = 0 if packing is True else CALL
        return Attention(name, f"the best on {device.type}", possible, least)
    found, missed = "eager", ""
    for name in BY_ITSELF:
        if mixed and name.startswith("flash"):
            continue
        reason = _lack(name, text, device, dtype, trained)
        if reason is None and (possible or name != "torch_varlen"):
            found = name
            break
        missed = missed or (reason or "")
    if possible and packing is True and TABLE[found].packs == "mask":
        found = "per_sequence"
    why = f"the best for {_type(dtype)} on {device.type}" + (f"; {missed}" if missed else "")
    return Attention(found, why, possible and TABLE[found].packs != "mask")


def _named(
    name: str,
    packing: Packing,
    possible: bool,
    text: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    trained: bool,
) -> Attention:
    if name not in TABLE:
        if packing is True:
            raise KDError(f"packing is not known to be exact with {name}: write packing: auto")
        return Attention(name, "as configured")
    reason = _lack(name, text, device, dtype, trained)
    if reason is not None:
        raise KDError(f"attention: {name} cannot be used, {reason}: write attention: auto")
    packs = possible and (packing is True or TABLE[name].packs != "mask")
    if packs and TABLE[name].packs == "mask" and text.model_type == "opt":
        raise KDError(f"opt makes no mask for packed sequences with {name}: write packing: auto")
    return Attention(name, "as configured", packs)


def _lack(
    name: str, text: PretrainedConfig, device: torch.device, dtype: torch.dtype, trained: bool
) -> str | None:
    """Why an implementation cannot be used here."""
    needs = TABLE[name]
    if needs.gpu is not None:
        if device.type != "cuda":
            return f"it needs a CUDA device and this is {device.type}"
        if torch.cuda.get_device_capability(device) < needs.gpu:
            return f"{name} needs a GPU of compute capability {needs.gpu[0]}.{needs.gpu[1]}"
        if dtype not in HALF:
            return f"{name} computes in bfloat16 or float16 and this is {_type(dtype)}"
        if name == "torch_varlen" and _width(text) % 8:
            return f"{name} needs heads of a width divisible by 8"
        if _width(text) > 256:
            return f"{name} needs heads of at most 256"
    if not needs.softcap and _capped(text):
        return f"{name} has no soft cap and {text.model_type} caps its attention"
    if not needs.dropout and trained and _dropout(text):
        return f"{name} has no dropout and the model's attention has"
    if not needs.installed():
        where = (
            "install it with `pip install 'kd-lightning[flash]'`"
            if needs.package == "flash-attn"
            else f"install {needs.package}"
        )
        return f"{needs.package} is not installed ({where})"
    return None


def _capped(text: PretrainedConfig) -> bool:
    return bool(getattr(text, "attn_logit_softcapping", None))


def _dropout(text: PretrainedConfig) -> float:
    names = ("attention_dropout", "attn_pdrop")
    return max(float(getattr(text, name, None) or 0.0) for name in names)


def _width(text: PretrainedConfig) -> int:
    """Of one attention head."""
    found = getattr(text, "head_dim", None)
    return int(found or text.hidden_size // text.num_attention_heads)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def register() -> None:
    """Make our implementations known to transformers."""
    for name, function in varlen.IMPLEMENTATIONS.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
