"""Decoding steps that are recorded once and then played, without a model's Python in between."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.models.attention import PACKS
from kd_lightning.models.one_step import Step, plain, weights

if TYPE_CHECKING:
    from kd_lightning.models.causal import CausalLM

BUCKET = 64
"""Widths are rounded up to a multiple of this, so that few steps have to be recorded."""
KEPT = 8
"""Recorded steps of a model; the one that was not played for the longest time goes first."""
LEAST = 16
"""Tokens below which nothing is recorded: it takes as long as some of them."""
ROUTED = frozenset(["mixtral", "qwen2_moe", "qwen3_moe"])
"""Which operations a step has depends on its tokens: a record of one is none of another."""
MASKS = {"per_sequence": torch.bool, "sdpa": torch.bool, "eager": None}
"""Attentions that take a mask of four dimensions, and its type (None: added, in the weights')."""

_STEPS: WeakKeyDictionary[CausalLM, OrderedDict[tuple[Any, ...], Step]] = WeakKeyDictionary()


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
    recorded for this number of rows and this width, on the weights of the moment.
    """

    def __init__(self, model: CausalLM, ids: Tensor, mask: Tensor, steps: int) -> None:
        """Compute the prompts `[B, P]`, padded on the left; `scores` are the first logits."""
        transformer: Any = model.transformer
        rows, width = ids.shape
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        out = transformer(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        self.scores: Tensor = out.logits[:, -1]
        more = -(-(width + steps) // BUCKET) * BUCKET - width
        layers = out.past_key_values.layers
        self._slots = [
            F.pad(x, (0, 0, 0, more)) for each in layers for x in (each.keys, each.values)
        ]
        self._at = torch.tensor([width - 1])
        self._positions = positions[:, -1:].clone()
        seen = F.pad(mask, (0, more)).bool()[:, None, None]
        self._free: Any = True
        if MASKS[transformer.config.get_text_config()._attn_implementation] is None:
            kind = self.scores.dtype
            hidden = torch.zeros(seen.shape, dtype=kind)
            seen, self._free = hidden.masked_fill_(~seen, torch.finfo(kind).min), 0.0
        self._seen = seen
        places, self._weights = weights(transformer)
        known = _STEPS.setdefault(model, OrderedDict())
        shapes = [(x.shape, x.dtype) for x in (*self._weights, *self._slots)]
        key = (rows, width + more, *shapes)
        if key not in known:
            known[key] = self._record(plain(transformer, places))
            while len(known) > KEPT:
                known.popitem(last=False)
        known.move_to_end(key)
        self._step = known[key]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[B, V]` behind one more token for each row `[B]`."""
        self._at += 1
        self._positions += 1
        self._seen.index_fill_(3, self._at, self._free)
        return self._step(
            self._weights, self._slots, tokens[:, None], self._at, self._positions, self._seen
        )

    def _record(self, step: Step) -> Step:
        """The step recorded, and played on other values than those it was recorded on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tracer says what it takes for fixed
            trace: Any = torch.jit.trace
            made: Step = trace(step, self._example(1), check_trace=False)
        for place in (2, 3):  # the executor plays differently from the second time on
            expected = step(*self._example(place))
            if not torch.allclose(made(*self._example(place)), expected, rtol=1e-4, atol=1e-4):
                rank_zero_info("a recorded decoding step differs from the model's: not used")
                return step
        return made

    def _example(self, place: int) -> tuple[Any, ...]:
        """What a step takes, `place` tokens on, in copies."""
        at, seen = self._at + place, self._seen.clone()
        seen.index_fill_(3, torch.arange(int(self._at) + 1, int(at) + 1), self._free)
        tokens = torch.full((len(self.scores), 1), place)
        slots = [each.clone() for each in self._slots]
        return self._weights, slots, tokens, at, self._positions + place, seen
