"""The student's own weights as its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.heads import LinearHead
from kd_lightning.models.modes import evaluating
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Reply, Request
from kd_lightning.teachers.speaking import Speaker
from kd_lightning.types import Batch, Completion, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AdapterOff(Teacher):
    r"""The student without its adapters: one copy of the weights serves both.

    .. math:: W_t = W, \qquad W_s = W + \tfrac{\alpha}{r} B A

    For students with LoRA adapters only. Quantised weights are shared as well, and where the
    student is sharded, so is this teacher.

    Source: Hu et al. 2021, arXiv 2106.09685, equation 3; the student's start as its anchor: Jaques
    et al. 2016, arXiv 1611.02796, section 4.
    """

    offers = frozenset({Signal.LOGITS, Signal.TEXT, Signal.LOGPROB})
    name = "the student without its adapters"

    def __init__(self) -> None:
        self._student: CausalLM | None = None

    @property
    def model(self) -> CausalLM:
        """The student; `attach` first."""
        assert self._student is not None, "call attach before the first forward"
        return self._student

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self._student is None else self._student.tokenizer

    @property
    def identity(self) -> str:
        """The weights' name; the adapters do not matter."""
        return f"AdapterOff:{self.model.transformer.name_or_path}"

    def attach(self, student: CausalLM) -> None:
        from peft import PeftModel  # here, since it takes a second to import

        if not isinstance(student.model, PeftModel):
            raise KDError(
                "AdapterOff is the student without its adapters, and this student has none: write "
                "--model.student.lora.rank=16, or a LocalTeacher as --model.teacher"
            )
        self._student = student
        self.packs = student.packs

    def materialize(self, device: torch.device) -> None:
        """Nothing to load: the weights are the student's."""
        assert self._student is not None, "call attach first"

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        with torch.no_grad(), self.without_adapters():
            output: ModelOutput = self.model(batch)
        return ModelOutput(output.hidden, self.head())

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        with self.without_adapters():
            return self.model.complete(prompts, sampling)

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        return Speaker(self.model, around=self.without_adapters).replies(requests)

    def head(self) -> LinearHead:
        """The student's head below its adapter, where it has one."""
        from peft.tuners.lora import LoraLayer

        own = self.model.head
        if not isinstance(own.linear, LoraLayer):
            return own
        linear = own.linear.get_base_layer()
        return LinearHead(linear, own.vocab, own.scale, own.softcap, own.own_precision)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters scaled to nothing, in evaluation mode.

        (`PeftModel.disable_adapter` would switch the adapters' gradients off and on, and sharded
        weights keep what they were first gathered with.)
        """
        from peft.tuners.lora import LoraLayer

        layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        kept = [dict(layer.scaling) for layer in layers]
        with evaluating(self.model):
            try:
                for layer in layers:
                    layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
                yield
            finally:
                for layer, scaling in zip(layers, kept, strict=True):
                    layer.scaling.update(scaling)
