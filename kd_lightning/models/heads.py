"""From hidden states to logits, exactly as the model itself does it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from kd_lightning.kernels.projection import Projection


class LinearHead:
    r"""The output projection with everything that some families do after it.

    .. math:: z = c \tanh\big((W h + b) \, s / c\big)

    with scale `s` (1 in most families) and soft cap `c` (none in most). Not a module: it points at
    the model's own projection, tied or not, adapted or not.
    """

    def __init__(
        self,
        linear: nn.Module,
        vocab: int,
        scale: float = 1.0,
        softcap: float | None = None,
        own_precision: bool = False,
    ) -> None:
        """`vocab`: ids that the tokenizer knows; `own_precision`: never under autocast."""
        self.linear = linear
        self.vocab = vocab
        self.scale = scale
        self.softcap = softcap
        self.own_precision = own_precision

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.own_precision:
            with torch.autocast(hidden.device.type, enabled=False):
                return self._project(hidden)
        return self._project(hidden)

    def projection(self) -> Projection | None:
        """The head as plain tensors, or None where it is more than that."""
        return Projection.of(
            self.linear,
            scale=self.scale,
            softcap=self.softcap,
            own_precision=self.own_precision,
        )

    def _project(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    @classmethod
    def of(
        cls, linear: nn.Module, config: PretrainedConfig, vocab: int, own_precision: bool = False
    ) -> LinearHead:
        """The head of a model with this configuration."""
        text = config.get_text_config()
        divided = getattr(text, "logits_scaling", None)  # Granite divides
        times = getattr(text, "logit_scale", None)  # Cohere multiplies
        scale = 1.0 / divided if divided else float(times) if times else 1.0
        return cls(
            linear, vocab, scale, getattr(text, "final_logit_softcapping", None), own_precision
        )
