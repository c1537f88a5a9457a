"""Weights, configurations and tokenizers from a folder or the hub, with errors in one sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from kd_lightning.security.folders import refuse_hostile
from kd_lightning.security.native import import_bitsandbytes

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
    refuse_hostile(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder), revision=revision, trust_remote_code=False)
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
    if quantization is not None or getattr(config, "quantization_config", None) is not None:
        import_bitsandbytes()
    refuse_hostile(Path(resolve(path)), weights=True)
    more: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve(path),
            config=config,
            revision=revision,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=None if attention == "auto" else attention,
            use_safetensors=True,
            trust_remote_code=False,
            **more,
        )
    except (OSError, ValueError, ImportError) as error:
        raise KDError(f"cannot load a model from {path}: {_first_line(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def quantization(kind: str) -> Any | None:
    """What transformers is told to load weights in 8 (`int8`) or 4 (`nf4`) bits.

    `torchao_int8` rounds weights only; `int8` (bitsandbytes) rounds what they are multiplied with
    as well, except for outliers.

    Source: int8: Dettmers et al. 2022, arXiv 2208.07339; nf4: Dettmers et al. 2023 (QLoRA),
    arXiv 2305.14314, section 3.
    """
    if kind == "none":
        return None
    package = "torchao" if kind == "torchao_int8" else "bitsandbytes"
    if importlib.util.find_spec(package) is None:
        raise KDError(
            f"quantization={kind} needs {package}: install the extra with "
            "`pip install 'kd-lightning[quantised]'`"
        )
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def keep_derivatives(model: torch.nn.Module) -> None:
    """Gradients pass the model's 4-bit layers whatever was computed before.

    On a processor with AVX512-BF16, bitsandbytes packs a layer's weights anew for good when it is
    first used in evaluation mode (a validation, an answer), and that form has no derivative: what
    lies before the layer would then be trained by a gradient that lacks it.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def new_config(fields: Mapping[str, Any]) -> PretrainedConfig:
    """A transformers configuration from its fields, `model_type` among them."""
    others = {name: value for name, value in fields.items() if name != "model_type"}
    with _building():
        config = AutoConfig.for_model(fields["model_type"], **others)
    assert isinstance(config, PretrainedConfig)
    return config


def new_model(config: PretrainedConfig, dtype: str, attention: str) -> PreTrainedModel:
    """A causal language model with fresh weights."""
    with _building():
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=DTYPES.get(dtype, torch.float32),
            attn_implementation=None if attention == "auto" else attention,
        )
    assert isinstance(model, PreTrainedModel)
    return model


@contextmanager
def _building() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, AssertionError) as error:
        raise KDError(
            f"cannot build a model from model.student.config: {_first_line(error)}"
        ) from error


def weights_dtype(config: PretrainedConfig, dtype: str) -> torch.dtype:
    """The type that the weights will have; `auto`: as stored."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    stored = config.dtype if config.dtype is not None else config.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; its padding token falls back to the end token."""
    refuse_hostile(Path(resolve(path)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(path), revision=revision, trust_remote_code=False
        )
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
