"""The engine that fits: continuous batching where it works and is the quicker."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_info

from kd_lightning.models import recorded
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.models.modes import evaluating
from kd_lightning.rollouts.continuous import ContinuousBatching, lack
from kd_lightning.rollouts.engines import Before, Engine, Generate
from kd_lightning.rollouts.paged import whole

FEW = 16
"""Answers below which too few end early for their room to be worth filling."""
SMALL = 250_000
"""Parameters below which continuous batching's own work is as much as the model's."""


class Auto(Engine):
    """`ContinuousBatching` where it works and is the quicker, else `Generate`; one line says which.

    The rule looks at model, device and the number of answers, never at a clock, so that a resumed
    run draws as the undisturbed one (`choice`). Both engines draw each answer by its own random
    numbers. They add in other orders: where a number falls within rounding (about 1e-6 in float32,
    more in half precision) of the border between two tokens, or two scores tie in greedy drawing,
    they may draw different ones.
    """

    def __init__(self, rows: int = 64, tokens: int = 65536) -> None:
        """Store the settings.

        Args:
            rows: Answers at once.
            tokens: Tokens at once of `Generate`, padding and the room for answers included.
        """
        self.rows = rows
        self.tokens = tokens
        self._generate = Generate(rows, tokens)
        self._continuous = ContinuousBatching(rows, max(512, rows))
        self._said = ""

    def draw(
        self, model: CausalLM, draws: Sequence[Draw], before: Before | None = None
    ) -> list[Drawn]:
        with evaluating(model):  # as it will be when it draws
            why_not = choice(model, draws, before)
        name = "Generate" if why_not else "ContinuousBatching"
        why = why_not or f"{len(draws)} answers, steps that cannot be recorded"
        if name != self._said:
            rank_zero_info(f"answers are drawn by {name}: {why}")
            self._said = name
        engine = self._generate if why_not else self._continuous
        return engine.draw(model, draws, before)


def choice(model: CausalLM, draws: Sequence[Draw], before: Before | None = None) -> str | None:
    """Why `Generate` draws; None: continuous batching does.

    On a CPU, recorded steps are the quicker, or as quick within 6 %, at every size and spread of
    lengths that was measured. Without them continuous batching takes 0.4 to 0.6 times as long
    where lengths are unlike, up to 1.4 times where all are alike (benchmarks.drawing). On CUDA it
    needs flash attention, which reads its pages directly: not measured.
    """
    if before is not None:
        return "the rollout changes the scores"
    if len(draws) < FEW:
        return f"fewer than {FEW} answers"
    lacking = lack(model)
    if lacking is not None:
        return lacking
    transformer = model.transformer
    if getattr(transformer, "hf_quantizer", None) is not None:
        return "its weights are quantised"
    if any(part._compiled_call_impl is not None for part in transformer.modules()):
        return "its layers are compiled"
    if model.device.type == "cuda":
        attention = transformer.config._attn_implementation
        if not attention.startswith("flash_attention"):
            return f"{attention} reads no pages on CUDA"
        return None
    if model.device.type != "cpu":
        return f"continuous batching is not known to be quicker on {model.device.type}"
    width = max(len(draw.prompt) for draw in draws)
    steps = max(draw.room for draw in draws)
    if recorded.possible(model, width, steps):
        return "its steps are recorded"
    if steps < recorded.LEAST:
        return f"fewer than {recorded.LEAST} tokens"
    if not whole(transformer):
        return "some of its layers see a window alone"
    if model.parameter_count < SMALL:
        return f"fewer than {SMALL:,} parameters"
    return None
