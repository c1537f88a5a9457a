"""A frozen transformers model in this process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.models import loading
from kd_lightning.models.attention import Attention, Packing, choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.layers import compile_layers
from kd_lightning.models.spec import DType
from kd_lightning.teachers import quantised
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Completion, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class LocalTeacher(Teacher):
    """Any transformers causal language model, whole on each device, in inference mode."""

    offers = frozenset({Signal.LOGITS, Signal.TEXT, Signal.LOGPROB})

    def __init__(
        self,
        path: str,
        dtype: DType = "auto",
        attention: str = "auto",
        packing: Packing = "auto",
        quantization: Literal["none", "int8", "nf4", "torchao_int8"] = "none",
        quantization_limit: float | None = 0.1,
        compile: bool = False,
        revision: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            path: Folder or hub name (`demo`: the packaged demo teacher).
            dtype: Of its weights and its computation, whatever the student's.
            attention: How attention is computed; auto: the best that is installed.
            packing: Leave padding out of the layers; auto: where that costs nothing.
            quantization: Weights in 8 or 4 bits; needs the extra `quantised` (int8, nf4:
                bitsandbytes; torchao_int8: torchao).
            quantization_limit: The most that the quantised teacher may differ from the full one, in
                nats per token on a few texts (both are loaded at set-up, one after the other). What
                is lost here no student gets back. None: do not compare.
            compile: Compile its layers with torch.compile.
            revision: Hub revision of `path`.
        """
        self.path = path
        self.name = path
        self.dtype = dtype
        self.attention = attention
        self.packing: Packing = packing
        self.quantization = quantization
        self.quantization_limit = quantization_limit
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
        quantization = loading.quantization(self.quantization)
        config = loading.load_config(self.path, self.revision)
        dtype = loading.weights_dtype(config, self.dtype)
        attention = choose(self.attention, self.packing, config, device, dtype, trained=False)
        rank_zero_info(f"teacher's attention: {attention}")
        load = partial(self._load, config, attention)
        if quantization is None:
            model = load()
            if self.spread is not None:
                self.spread(model)
            else:
                model.to(device)
        else:  # stays whole where it was loaded
            limit = self.quantization_limit
            full = None if limit is None else quantised.full(load, device)
            model = load(quantization)
            if self.quantization == "torchao_int8":
                model.to(device)
            if full is not None and limit is not None:
                quantised.compare(full, model, self.quantization, limit)
        if self.compile:
            compile_layers(model.transformer)
        self.packs = model.packs
        self._model = model

    def _load(
        self, config: PretrainedConfig, attention: Attention, quantization: Any | None = None
    ) -> CausalLM:
        model = loading.load_model(
            self.path,
            dtype=self.dtype,
            attention=attention.name,
            revision=self.revision,
            config=copy.deepcopy(config),  # loading writes into it
            quantization=quantization,
        )
        model.requires_grad_(False)
        return CausalLM(model, self.tokenizer, own_precision=True, attention=attention).eval()

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        self.model.eval()  # cheap, and a caller's `.train()` must not switch dropout on
        # gathered weights must not be inference tensors: generation gathers without that mode
        sharded = self.model.placement is not None
        with torch.no_grad() if sharded else torch.inference_mode():
            output: ModelOutput = self.model(batch)
            return output

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        return self.model.complete(prompts, sampling)
