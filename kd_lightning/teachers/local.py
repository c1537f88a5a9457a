"""A frozen transformers model in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.spec import DType
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Completion, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LocalTeacher(Teacher):
    """Any transformers causal language model, whole on each device, in inference mode."""

    offers = frozenset({Signal.LOGITS, Signal.TEXT, Signal.LOGPROB})

    def __init__(
        self,
        path: str,
        dtype: DType = "auto",
        attention: str = "sdpa",
        quantization: Literal["none", "int8", "nf4"] = "none",
        compile: bool = False,
        revision: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            path: Folder or hub name (`demo`: the packaged demo teacher).
            dtype: Of its weights and its computation, whatever the student's.
            attention: Transformers implementation.
            quantization: Weights in 8 or 4 bits; needs the extra `quantised` (bitsandbytes).
            compile: Compile its layers with torch.compile.
            revision: Hub revision of `path`.
        """
        self.path = path
        self.name = path
        self.dtype = dtype
        self.attention = attention
        self.quantization = quantization
        self.compile = compile
        self.revision = revision
        self._model: CausalLM | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def model(self) -> CausalLM:
        """The model behind the teacher; `materialize` first."""
        assert self._model is not None, "call materialize before the first forward"
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = loading.load_tokenizer(self.path, self.revision)
        return self._tokenizer

    def materialize(self, device: torch.device) -> None:
        if self._model is not None:
            return
        quantization = self._quantization()
        model = loading.load_model(
            self.path,
            dtype=self.dtype,
            attention=self.attention,
            revision=self.revision,
            quantization=quantization,
        )
        model.requires_grad_(False)
        wrapped = CausalLM(model, self.tokenizer, own_precision=True).eval()
        self._model = wrapped if quantization is not None else wrapped.to(device)
        if self.compile:
            wrapped.transformer.base_model.compile(dynamic=True)

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        self.model.eval()  # cheap, and a caller's `.train()` must not switch dropout on
        with torch.inference_mode():
            output: ModelOutput = self.model(batch)
            return output

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        return self.model.generate(prompts, sampling)

    def _quantization(self) -> Any | None:
        if self.quantization == "none":
            return None
        if importlib.util.find_spec("bitsandbytes") is None:
            raise KDError(
                f"quantization={self.quantization} needs bitsandbytes: install the extra with "
                "`pip install 'kd-lightning[quantised]'`"
            )
        from transformers import BitsAndBytesConfig

        if self.quantization == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
