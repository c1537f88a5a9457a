"""A frozen transformers model in this process."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.cache.digests import tokenizer_digest, weights_digest
from kd_lightning.models import loading
from kd_lightning.models.attention import Attention, Packing, choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.layers import compile_layers
from kd_lightning.models.spec import DType
from kd_lightning.teachers import quantised
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Reply, Request
from kd_lightning.teachers.rights import licence_of
from kd_lightning.teachers.speaking import Speaker
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
        licence: str | None = None,
        device: str = "auto",
        rows: int = 64,
        batch_tokens: int = 32768,
        template: str = "auto",
        template_arguments: dict[str, Any] | None = None,
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
            licence: Terms of its outputs; None: what the model card in its folder states. A word
                with `no-train` in it: nothing may be trained on them.
            device: Where it answers requests outside a trainer; auto: a GPU if there is one.
            rows: Requests' answers that are made at once.
            batch_tokens: Tokens at once while it answers requests, padding included.
            template: Chat template of prompts: auto (its own), plain, or a jinja file.
            template_arguments: Further arguments for the template (`enable_thinking: false`).
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
        self.licence = licence
        self.device = device
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.template = template
        self.template_arguments = template_arguments
        self._identity: str | None = None
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

    @property
    def licence(self) -> str | None:
        """What was stated, else what its model card states."""
        return self._licence or licence_of(self.path)

    @licence.setter
    def licence(self, stated: str | None) -> None:
        self._licence = stated

    @property
    def identity(self) -> str:
        """Its weights and tokenizer, and how it computes and words; loads it at the first need."""
        if self._identity is None:
            self.open()
            self._identity = (
                f"LocalTeacher:{self.path}:{model_digest(self.model)}:"
                f"{self.model.transformer.dtype}:{self.quantization}:"
                f"{worded(self.template, self.template_arguments)}"
            )
        return self._identity

    def open(self) -> None:
        self.materialize(place(self.device))

    def close(self) -> None:
        self._model = None

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        self.open()
        how = (self.rows, self.batch_tokens, self.template, self.template_arguments)
        return Speaker(self.model, *how).replies(requests)

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        self.model.eval()  # cheap, and a caller's `.train()` must not switch dropout on
        # gathered weights must not be inference tensors: generation gathers without that mode
        sharded = self.model.placement is not None
        with torch.no_grad() if sharded else torch.inference_mode():
            output: ModelOutput = self.model(batch)
            return output

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        return self.model.complete(prompts, sampling)


def place(device: str) -> torch.device:
    """The device that a setting names; auto: a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def model_digest(model: CausalLM) -> str:
    """Short, of the weights and of the tokenizer."""
    return f"{weights_digest(model)[:16]}:{tokenizer_digest(model.tokenizer)[:16]}"


def worded(template: str, arguments: Mapping[str, Any] | None) -> str:
    """How prompts become text, for an identity."""
    return f"{template}{json.dumps(arguments or {}, sort_keys=True)}"
