"""Student and teacher as their configurations describe them, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_lightning.doctor.counting import Paper
from kd_lightning.errors import KDError
from kd_lightning.kernels import backends, eager, projection
from kd_lightning.losses import chunks
from kd_lightning.models import loading, vocabulary
from kd_lightning.models.causal import CausalLM, with_adapters
from kd_lightning.models.recompute import recompute
from kd_lightning.models.shrink import keep_layers

if TYPE_CHECKING:
    from kd_lightning.models.spec import StudentSpec
    from kd_lightning.teachers.local import LocalTeacher

BITS = {"int8": 1.0, "torchao_int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a quantised weight; 4 bits carry a float32 scale for each 64 of them."""


class PaperLM(CausalLM):
    """A model whose numbers mean nothing: they are not compared."""

    def verify(self) -> None:
        """Nothing to see."""


class Vocabulary:
    """Stands in for a tokenizer of which only the number of ids matters."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        """The last id."""
        return {"": self._size - 1}


def student_config(
    spec: StudentSpec, tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    """The student's transformers configuration; `tokenizer`: for a new one's vocabulary."""
    if spec.path is not None:
        config = loading.load_config(spec.path, spec.revision)
        for name, value in spec.overrides.items():
            setattr(config, name, value)
        return config
    assert spec.config is not None
    fields = {**spec.config, **spec.overrides}
    if "vocab_size" not in fields:
        if tokenizer is None:
            raise KDError("a new student's size needs its tokenizer, or write config.vocab_size")
        fields["vocab_size"] = vocabulary.size(tokenizer)
    return loading.new_config(fields)


def student_on_paper(
    spec: StudentSpec, tokenizer: PreTrainedTokenizerBase | None, paper: Paper
) -> CausalLM:
    """The student: layers cut, adapters in place, what is recomputed marked."""
    config = student_config(spec, tokenizer)
    model: Any = _model(config, spec.dtype, spec.attention)
    if spec.layers is not None:
        model = keep_layers(model, spec.layers, spec.keep)
    if spec.gradient_checkpointing:
        recompute(model, selective=spec.gradient_checkpointing == "selective")
    if spec.lora is not None:
        model = with_adapters(model, spec.lora, bool(spec.gradient_checkpointing))
    return _wrapped(model, config, paper, own_precision=False).train()


def teacher_on_paper(teacher: LocalTeacher, paper: Paper) -> CausalLM:
    """The teacher, frozen; quantised weights as if they were not."""
    config = loading.load_config(teacher.path, teacher.revision)
    model = _model(config, teacher.dtype, teacher.attention)
    model.requires_grad_(False)
    return _wrapped(model, config, paper, own_precision=True).eval()


def of_few_bits(model: CausalLM, kind: str) -> list[Tensor]:
    """The weights that quantisation rounds: those of linear layers but the head, frozen."""
    if kind == "none":
        return []
    head: Any = model.transformer.get_output_embeddings()
    head = getattr(head, "base_layer", head)  # below an adapter
    linear = [m for m in model.transformer.modules() if isinstance(m, torch.nn.Linear)]
    return [m.weight for m in linear if m is not head and not m.weight.requires_grad]


def quantised(model: CausalLM, kind: str, wide: bool = False) -> int:
    """Bytes that quantisation takes away; `wide`: the real weights are twice as wide."""
    saved = (
        w.numel() * (w.element_size() * (1 + wide) - BITS[kind]) for w in of_few_bits(model, kind)
    )
    return round(sum(saved))


def size(tensors: Iterator[Tensor]) -> int:
    """Their bytes."""
    return sum(x.numel() * x.element_size() for x in tensors)


def _model(config: PretrainedConfig, dtype: str, attention: str) -> PreTrainedModel:
    kind = loading.weights_dtype(config, dtype)
    named = next(name for name, each in loading.DTYPES.items() if each == kind)
    with torch.device("meta"):
        return loading.new_model(config, named, "eager" if attention == "eager" else "sdpa")


def _wrapped(model: Any, config: PretrainedConfig, paper: Paper, own_precision: bool) -> CausalLM:
    paper.copy(model)
    size = int(config.get_text_config().vocab_size)
    words: Any = Vocabulary(size)
    return PaperLM(model, words, own_precision)


@contextmanager
def loss_as_on(device: str) -> Iterator[None]:
    """Budgets and products of the fused loss as on `device`, for tensors without contents."""
    budgets, blocks = dict(chunks.DEVICE_CHUNK_BYTES), dict(eager.BLOCK_BYTES)
    try:
        if device == "cuda":
            chunks.DEVICE_CHUNK_BYTES["cpu"] = budgets["cuda"]
            eager.BLOCK_BYTES.pop("cpu")
            projection.MIXED.add("cpu")
        with backends.kernel("torch"):
            yield
    finally:
        chunks.DEVICE_CHUNK_BYTES.clear()
        chunks.DEVICE_CHUNK_BYTES.update(budgets)
        eager.BLOCK_BYTES.update(blocks)
        projection.MIXED.discard("cpu")
