"""Weights, configurations and tokenizers from a folder or the hub, with errors in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kd_lightning.errors import KDError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

DEMO_TEACHER = "demo"
"""The name under which the packaged demo teacher is found."""


def resolve(path: str) -> str:
    """The folder or hub name behind `path`; `demo` is the packaged teacher."""
    if path == DEMO_TEACHER and not Path(path).exists():
        return str(Path(__file__).parent.parent / "assets" / "demo_teacher")
    folder = Path(path).expanduser()
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise KDError(f"there is no folder {path}: write a model's folder or its name on the hub")
    return str(folder) if folder.exists() else path


def load_config(path: str, revision: str | None = None) -> PretrainedConfig:
    """The transformers configuration at `path`; no remote code is ever run."""
    folder = Path(resolve(path))
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise KDError(f"{path} is no model: the folder holds no config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), revision=revision)
    except (OSError, ValueError) as error:
        raise KDError(
            f"cannot load a model from {path}: it is neither a model's folder nor a model that "
            f"the hub gave ({_first_line(error)})"
        ) from error
    if config.is_encoder_decoder:
        raise KDError(f"{path} is an encoder-decoder; only causal language models are supported")
    assert isinstance(config, PretrainedConfig)
    return config


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    attention: str = "sdpa",
    revision: str | None = None,
    config: PretrainedConfig | None = None,
    quantization: Any | None = None,
) -> PreTrainedModel:
    """A causal language model with its weights, from safetensors only."""
    config = config or load_config(path, revision)
    more: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve(path),
            config=config,
            revision=revision,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=attention,
            use_safetensors=True,
            **more,
        )
    except (OSError, ValueError, ImportError) as error:
        raise KDError(f"cannot load a model from {path}: {_first_line(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def new_model(config: dict[str, Any], dtype: str, attention: str) -> PreTrainedModel:
    """A causal language model with fresh weights, from a configuration's fields."""
    fields = dict(config)
    kind = fields.pop("model_type")
    try:
        made = AutoConfig.for_model(kind, **fields)
        model = AutoModelForCausalLM.from_config(
            made, dtype=DTYPES.get(dtype, torch.float32), attn_implementation=attention
        )
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise KDError(
            f"cannot build a model from model.student.config: {_first_line(error)}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; its padding token falls back to the end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise KDError(f"cannot load a tokenizer from {path}: {_first_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.eos_token_id is None:
        raise KDError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_generation_config(path: str) -> GenerationConfig | None:
    """Generation settings at `path` where there are some (end tokens above all)."""
    folder = Path(resolve(path))
    if folder.is_dir() and not (folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except OSError:  # a hub model without one
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
