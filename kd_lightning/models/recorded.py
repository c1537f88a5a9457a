"""Decoding steps that are recorded once and then played, without a model's Python in between."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.models import packing
from kd_lightning.models.attention import PACKS, Attention
from kd_lightning.models.one_step import Step, plain, weights

if TYPE_CHECKING:
    from kd_lightning.models.causal import CausalLM

BUCKET = 32
"""The places that a step looks at grow by so many."""
SHAPES = ((2, 5, 12), (3, 9, 31), (1, 1, 8))
"""Rows, tokens of the prompt and width that a step is recorded on (the first) and tried on."""
LEAST = 16
"""Tokens below which nothing is recorded: it takes as long as some of them."""
ROUTED = frozenset(["mixtral", "qwen2_moe", "qwen3_moe"])
"""Which operations a step has depends on its tokens: a record of one is none of another."""
MASKS = {"per_sequence": torch.bool, "sdpa": torch.bool, "eager": None}
"""Attentions that take a mask of four dimensions, and its type (None: added, in the weights')."""

_STEPS: WeakKeyDictionary[CausalLM, dict[tuple[Any, ...], Step]] = WeakKeyDictionary()
"""Of a model, by its attention and the shapes and types of its weights."""


def possible(model: CausalLM, width: int, steps: int) -> bool:
    """Whether a model's steps can be recorded: a plain one on a CPU, whose layers see all places.

    A function of model and sizes alone: what is drawn does not depend on what was drawn before.
    """
    transformer = model.transformer
    config = transformer.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return (
        steps >= LEAST
        and sys.version_info < (3, 14)  # from there on torch.jit is not supported
        and model.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and model.placement is None
        and model.model is transformer  # adapters can be switched off, which a record would not see
        and not transformer.training
        and config.model_type in PACKS - ROUTED
        and config._attn_implementation in MASKS
        and (window is None or window >= width + steps + BUCKET)
        and getattr(transformer, "hf_quantizer", None) is None
        and not any(m._compiled_call_impl is not None for m in transformer.modules())
    )


class Decoding:
    """A batch whose answers grow token by token.

    The prompts are the model's own forward; each further call plays the operations of one step,
    recorded once for a model, on the weights of the moment.
    """

    def __init__(self, model: CausalLM, ids: Tensor, mask: Tensor, steps: int) -> None:
        """Compute the prompts `[B, P]`, padded on the left; `scores` are the first logits."""
        transformer = model.transformer
        places, self._weights = weights(transformer)
        known = _STEPS.setdefault(model, {})
        attention = transformer.config.get_text_config()._attn_implementation
        key = (attention, *((x.shape, x.dtype) for x in self._weights))
        if key not in known:
            known[key] = _record(transformer, plain(transformer, places), self._weights)
        self._step = known[key]
        self._batch = Begun(transformer, ids, mask, ids.shape[1] + steps, model.attention)
        self.scores = self._batch.scores

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[B, V]` behind one more token for each row `[B]`."""
        return self._step(self._weights, *self._batch.next(tokens))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows `[b]` of the batch alone."""
        self._batch.keep(rows)


class Begun:
    """Keys and values of a batch, and where its next tokens stand."""

    def __init__(
        self,
        transformer: Any,
        ids: Tensor,
        mask: Tensor,
        width: int,
        attention: Attention | None = None,
    ) -> None:
        """Compute the prompts `[B, P]`, padded on the left; `width` places in all.

        `attention`: with it, padding is left out where there is enough of it.
        """
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        more = width - ids.shape[1]
        text = transformer.config.get_text_config()
        apart = (
            attention is not None
            and attention.name == text._attn_implementation
            and getattr(text, "sliding_window", None) is None  # its cache would be cut to one
            and packing.padded(mask.shape, int(mask.sum()), attention)
        )
        self._slots: list[Tensor] = []
        if apart:
            assert attention is not None
            out = packing.prompts(transformer, ids, mask, attention)
            row, column = mask.nonzero(as_tuple=True)
            for each in out.past_key_values.layers:
                for x in (each.keys, each.values):
                    slot = x.new_zeros(len(ids), width, x.shape[1], x.shape[3])
                    slot[row, column] = x[0].transpose(0, 1)
                    self._slots.append(slot.transpose(1, 2).contiguous())
            self.scores: Tensor = out.logits[0]
        else:
            out = transformer(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            for each in out.past_key_values.layers:
                self._slots += [F.pad(x, (0, 0, 0, more)) for x in (each.keys, each.values)]
            self.scores = out.logits[:, -1]
        self._place = ids.shape[1] - 1
        self._at = torch.tensor([self._place])
        self._positions = positions[:, -1:].clone()
        seen = F.pad(mask, (0, more)).bool()[:, None, None]
        self._free: Any = True
        if MASKS[transformer.config.get_text_config()._attn_implementation] is None:
            kind = self.scores.dtype
            hidden = torch.zeros(seen.shape, dtype=kind)
            seen, self._free = hidden.masked_fill_(~seen, torch.finfo(kind).min), 0.0
        self._seen = seen
        self._part: list[Tensor] = []
        self._look(0)

    def next(self, tokens: Tensor) -> tuple[Any, ...]:
        """What a step takes beside the weights, for one more token of each row `[B]`."""
        self._at += 1
        self._positions += 1
        self._seen.index_fill_(3, self._at, self._free)
        self._place += 1
        if self._place >= self._looked:
            self._look(self._place + 1)
        return self._part, tokens[:, None], self._at, self._positions, self._shown

    def keep(self, rows: Tensor) -> None:
        """These rows `[b]` alone."""
        self._part = []
        for i, each in enumerate(self._slots):  # the former ones go as the new ones come
            self._slots[i] = each[rows]
        self._positions, self._seen = self._positions[rows], self._seen[rows]
        self._look(self._looked)

    def _look(self, width: int) -> None:
        """Show steps the first places, at least so many: what stands behind costs nothing yet."""
        self._looked = min(-(-width // BUCKET) * BUCKET, self._seen.shape[3])
        self._part = [each[:, :, : self._looked] for each in self._slots]
        self._shown = self._seen[..., : self._looked]


def _record(transformer: Any, step: Step, values: list[Tensor]) -> Step:
    """The step recorded, and tried on other rows and widths than those it was recorded on."""
    made: Step | None = None
    known = transformer.config.get_text_config().vocab_size
    for rows, prompt, width in SHAPES:
        ids = torch.arange(rows * prompt).view(rows, prompt) % known
        mask = torch.ones_like(ids)
        mask[0, : prompt // 2] = 0
        tried = [Begun(transformer, ids, mask, width) for _ in range(2)]
        if made is None:
            made = _traced(step, values, Begun(transformer, ids, mask, width))
        for token in range(3):  # the executor plays differently from the second time on
            tokens = torch.full((rows,), token)
            expected, found = (
                each(values, *batch.next(tokens))
                for each, batch in zip((step, made), tried, strict=True)
            )
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                rank_zero_info("a recorded decoding step differs from the model's: not used")
                return step
    assert made is not None
    return made


def _traced(step: Step, values: list[Tensor], batch: Begun) -> Step:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tracer says what it takes for fixed
        trace: Any = torch.jit.trace
        given = (values, *batch.next(torch.zeros_like(batch.scores[:, 0], dtype=torch.long)))
        made: Step = trace(step, given, check_trace=False)
        return made
