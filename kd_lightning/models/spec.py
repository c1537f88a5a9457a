"""What a configuration says about a student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kd_lightning.errors import KDError
from kd_lightning.models.attention import Packing

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 16
    """Rank of the update [r]."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input."""
    targets: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, or all-linear (the head excluded)."""


@dataclass(frozen=True)
class StudentSpec:
    """The model that is trained: from a folder or the hub, cut out of a bigger one, or new."""

    path: str | None = None
    """Folder or hub name of a transformers causal language model; None: a new one from `config`."""
    config: dict[str, Any] | None = None
    """A new model's transformers configuration, `model_type` included; `vocab_size` follows the
    tokenizer where it is left out."""
    tokenizer: str | None = None
    """Folder or hub name; None: the student's own, else the teacher's."""
    layers: int | list[int] | None = None
    """Cut the model at `path` down to this many layers, or to the layers listed."""
    keep: Literal["even", "first", "last"] = "even"
    """Which layers a number keeps: evenly spread (first and last included), first, or last."""
    dtype: DType = "float32"
    """Data type of the weights; auto: as stored."""
    attention: str = "auto"
    """How attention is computed: auto (the best that is installed), torch_varlen, per_sequence,
    flash_attention_2, sdpa, eager or another name that transformers knows."""
    packing: Packing = "auto"
    """Leave padding out of the layers; auto: where the attention can do it without waste."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass: true, all of a layer's (least memory, about
    a third more time); selective, all but the results of products and attention."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Frozen weights in 8 or 4 bits under adapters [QLoRA]; needs `lora` and the extra
    `quantised`."""
    lora: LoraSpec | None = None
    """Train adapters and leave the weights as they are; null: train everything."""
    revision: str | None = None
    """Hub revision of `path`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values that replace fields of the model's own configuration (for example dropout)."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            raise KDError(
                "model.student needs exactly one of `path` (a folder or hub name) and `config` "
                "(a new model's configuration)"
            )
        if self.config is not None and "model_type" not in self.config:
            raise KDError("model.student.config needs a `model_type`, for example llama")
        if self.layers is not None and self.path is None:
            raise KDError("model.student.layers cuts an existing model: name it in `path`")
        if self.quantization != "none" and (self.lora is None or self.path is None):
            raise KDError(
                "quantised weights cannot be trained: give the student at `path` adapters "
                "(model.student.lora.rank=16), or write model.student.quantization=none"
            )
