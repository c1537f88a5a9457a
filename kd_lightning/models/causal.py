"""A causal language model split where distillation needs it: hidden states, then the head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_lightning.errors import KDError
from kd_lightning.models import loading, packing, shared, vocabulary
from kd_lightning.models.attention import Attention, choose
from kd_lightning.models.generation import generate
from kd_lightning.models.heads import LinearHead
from kd_lightning.models.layers import compile_layers
from kd_lightning.models.placement import Placement
from kd_lightning.models.recompute import recompute
from kd_lightning.models.shrink import keep_layers
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.security.native import import_bitsandbytes
from kd_lightning.types import Batch, Completion, ModelOutput, Sampling

R = TypeVar("R")

EXACT = frozenset(
    [
        "llama",
        "qwen2",
        "qwen3",
        "qwen2_moe",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "mistral",
        "mixtral",
        "phi3",
        "gpt2",
        "gpt_neox",
        "granite",
        "cohere",
        "cohere2",
        "olmo",
        "olmo2",
        "smollm3",
        "opt",
    ]
)
"""Model types whose head on the backbone's last hidden state is known to give their logits."""


class CausalLM(nn.Module):
    """A transformers model with its tokenizer, seen as `hidden -> head`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        own_precision: bool = False,
        attention: Attention | None = None,
    ) -> None:
        """What a model computes with.

        Args:
            model: Of transformers, perhaps with adapters.
            tokenizer: Its own.
            own_precision: Compute in the weights' type, also under autocast (teachers).
            attention: What was chosen when the model was made; None: padded.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.own_precision = own_precision
        self.attention = attention
        self.placement: Placement | None = None  # parallel/ says so where weights are sharded
        linear = self.transformer.get_output_embeddings()
        if linear is None:
            raise KDError(f"{type(model).__name__} has no language-model head")
        rows = int(linear.weight.shape[0])
        known = vocabulary.size(tokenizer)
        if known > rows:
            raise KDError(
                f"the tokenizer knows {known} ids and the model has {rows} rows: use the model's "
                "own tokenizer"
            )
        self.head = LinearHead.of(linear, self.transformer.config, known, own_precision)
        if self.transformer.config.get_text_config().model_type not in EXACT:
            self.verify()

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformers model itself, adapters (if any) inside its layers."""
        inner = getattr(self.model, "get_base_model", None)
        found = inner() if callable(inner) else self.model
        assert isinstance(found, PreTrainedModel)
        return found

    @property
    def device(self) -> torch.device:
        """Where it computes: where the weights are, or are gathered."""
        if self.placement is not None:
            return self.placement.device
        return next(self.model.parameters()).device

    @property
    def parameter_count(self) -> int:
        """All parameters; tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def size(self) -> str:
        """How many parameters, and how many of them are trained, in words."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"student of {self.parameter_count:,} parameters ({trained:,} trained)"

    @overload
    def forward(self, batch: Batch) -> ModelOutput: ...
    @overload
    def forward(self, batch: Batch, then: Callable[[ModelOutput], R]) -> R: ...
    def forward(self, batch: Batch, then: Callable[[ModelOutput], Any] | None = None) -> Any:
        """Hidden states, and on them `then`: a loss runs inside the forward, head at hand.

        Sharding wrappers gather the head's weights around this call only, so a loss is handed in
        rather than called on the result.
        """
        if self.own_precision:
            with torch.autocast(batch.input_ids.device.type, enabled=False):
                output = self._hidden(batch)
        else:
            output = self._hidden(batch)
        return output if then is None else then(output)

    @property
    def packs(self) -> bool:
        """Whether the padding of a batch costs nothing."""
        return self.attention is not None and self.attention.packs

    def shares(self, batch: Batch) -> bool:
        """Whether answers to one prompt are computed behind one copy of it."""
        config = self.transformer.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kind = config.model_type
        return self.attention is not None and shared.worthwhile(batch, kind, self.attention, window)

    def _hidden(self, batch: Batch) -> ModelOutput:
        if self.shares(batch):
            assert self.attention is not None
            states = shared.hidden_states(self.transformer.base_model, batch, self.attention)
            return ModelOutput(states, self.head)
        if self.attention is not None and packing.worthwhile(batch, self.attention):
            backbone = self.transformer.base_model
            return ModelOutput(packing.hidden_states(backbone, batch, self.attention), self.head)
        states = self.transformer.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        return ModelOutput(states.last_hidden_state, self.head)

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One answer for each prompt of token ids; a collective call where weights are sharded."""
        if self.placement is None:
            return generate(self.transformer, self.tokenizer, prompts, sampling)
        with self.placement.gathered():
            return generate(
                self.transformer, self.tokenizer, prompts, sampling, placement=self.placement
            )

    def at_hand(self, then: Callable[[], R]) -> R:
        """`then`, its weights gathered where they are sharded: there a collective call."""
        if self.placement is None:
            return then()
        with self.placement.gathered():
            return then()

    def verify(self) -> None:
        """Refuse a family whose logits are not head(last hidden state)."""
        ids = torch.arange(1, 5, device=self.device)[None] % self.head.vocab
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            expected = self.transformer(input_ids=ids, use_cache=False).logits
            hidden = self.transformer.base_model(input_ids=ids, use_cache=False).last_hidden_state
            found = self.head(hidden) if hidden is not None else expected * float("nan")
        self.model.train(was)
        if expected.shape != found.shape or not torch.allclose(
            expected.float(), found.float(), atol=1e-2, rtol=1e-2
        ):
            raise KDError(
                f"{type(self.transformer).__name__} computes its logits from something other than "
                "its last hidden state; this family is not supported yet"
            )

    def save(self, folder: Path) -> None:
        """A Hugging Face folder: weights (adapters merged), tokenizer, generation settings."""
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).to("cpu").merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def build_student(
    spec: StudentSpec,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | None = None,
    half: bool = False,
) -> CausalLM:
    """The student that a configuration describes, in training mode.

    Args:
        spec: The configuration.
        tokenizer: The student's.
        device: Where it will compute; None: where it is built.
        half: Whether the trainer computes in half precision.
    """

    def attend(config: PretrainedConfig) -> Attention:
        weights = loading.weights_dtype(config, spec.dtype)
        mixed = half and weights == torch.float32
        dtype = torch.bfloat16 if mixed else weights
        where = device or torch.device("cpu")
        how = {"trained": True, "mixed": mixed}
        chosen = choose(spec.attention, spec.packing, config, where, dtype, **how)
        rank_zero_info(f"student's attention: {chosen}")
        return chosen

    if spec.path is not None:
        config = loading.load_config(spec.path, spec.revision)
        for name, value in spec.overrides.items():
            if not hasattr(config, name):
                raise KDError(f"model.student.overrides: {config.model_type} has no `{name}`")
            setattr(config, name, value)
        attention = attend(config)
        model = loading.load_model(
            spec.path,
            dtype=spec.dtype,
            attention=attention.name,
            revision=spec.revision,
            config=config,
            quantization=loading.quantization(spec.quantization),
        )
        if spec.layers is not None:
            model = keep_layers(model, spec.layers, spec.keep)
    else:
        assert spec.config is not None
        ids = {
            name: getattr(tokenizer, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        fields = {"vocab_size": vocabulary.size(tokenizer), **ids, **spec.config, **spec.overrides}
        config = loading.new_config(fields)
        attention = attend(config)
        model = loading.new_model(config, spec.dtype, attention.name)
        settings = loading.load_generation_config(tokenizer.name_or_path)
        if settings is not None:
            model.generation_config = settings
    if spec.gradient_checkpointing:
        recompute(model, selective=spec.gradient_checkpointing == "selective")
    if spec.lora is not None:
        model = with_adapters(model, spec.lora, bool(spec.gradient_checkpointing))
    student = CausalLM(model, tokenizer, attention=attention)
    if spec.compile:
        compile_layers(student.transformer)
    return student.train()


def with_adapters(model: PreTrainedModel, lora: LoraSpec, inputs_need_grad: bool) -> Any:
    """The model with new adapters, its own weights frozen."""
    import_bitsandbytes()  # peft would
    from peft import LoraConfig, get_peft_model

    loading.keep_derivatives(model)
    if inputs_need_grad:
        model.enable_input_require_grads()
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise KDError(f"model.student.lora: {str(error).splitlines()[0]}") from error
