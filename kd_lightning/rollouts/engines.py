"""What makes answers: from prompts and their random numbers to tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import LogitsProcessor

from kd_lightning.errors import KDError
from kd_lightning.models import drawing
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.models.generation import end_tokens, most
from kd_lightning.models.modes import evaluating
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.teachers.own import AdapterOff
from kd_lightning.types import Sampling

Before = Callable[[Sequence[Draw]], Sequence[LogitsProcessor]]
"""From the draws of a batch to what changes its scores before tokens are drawn."""


class Engine(ABC):
    """Draws with a model whose weights are those of the moment."""

    served = False
    """Whether it has a copy of the student's weights instead, and of nobody else's."""

    @abstractmethod
    def draw(
        self, model: CausalLM, draws: Sequence[Draw], before: Before | None = None
    ) -> list[Drawn]:
        """One answer for each, with log-probabilities; a collective call of sharded models."""


class Generate(Engine):
    """Generation of transformers, with a cache of keys and values: works wherever it does.

    On a CPU the steps of most models are recorded and played (`models/recorded.py`). A batch that
    does not fit into the device's memory is halved once, and with it all that follow; what is drawn
    stays the same.
    """

    def __init__(self, rows: int = 64, tokens: int = 65536) -> None:
        """Store the settings.

        Args:
            rows: Answers at once.
            tokens: Tokens at once, padding and the room for answers included.
        """
        if rows < 1 or tokens < 1:
            raise KDError(f"rows and tokens must be at least 1, not {rows} and {tokens}")
        self.rows = rows
        self.tokens = tokens
        self._halved = False

    def draw(
        self, model: CausalLM, draws: Sequence[Draw], before: Before | None = None
    ) -> list[Drawn]:
        return model.at_hand(lambda: self._draw(model, draws, before))

    def _draw(self, model: CausalLM, draws: Sequence[Draw], before: Before | None) -> list[Drawn]:
        in_step = model.placement is not None and model.placement.in_step
        found: dict[int, Drawn] = {}
        with torch.no_grad(), evaluating(model):
            batches = list(self.batches(draws))
            if in_step:
                batches += [[]] * (most(len(batches), model.device) - len(batches))
            while batches:
                chosen = batches.pop(0)
                some = [draws[i] for i in chosen] or [idle(model)]
                first = () if before is None else before(some)
                try:
                    made = drawing.draw(model, some, True, first, in_step)
                except torch.OutOfMemoryError:
                    if self._halved or in_step or len(chosen) < 2:
                        raise
                    self._halve(len(chosen))
                    half = len(chosen) // 2
                    batches = [chosen[:half], chosen[half:], *batches]
                    continue
                found.update(zip(chosen, made, strict=bool(chosen)))
        return [found[i] for i in range(len(draws))]

    def batches(self, draws: Sequence[Draw]) -> Iterator[list[int]]:
        """Draws of similar length together."""
        order = sorted(range(len(draws)), key=lambda i: len(draws[i].prompt))
        chosen: list[int] = []
        for i in order:  # the present one is the longest
            width = len(draws[i].prompt) + max(draws[k].room for k in [*chosen, i])
            if chosen and (len(chosen) >= self.rows or width * (len(chosen) + 1) > self.tokens):
                yield chosen
                chosen = []
            chosen = [*chosen, i]
        if chosen:
            yield chosen

    def _halve(self, rows: int) -> None:
        self._halved, self.rows = True, max(1, rows // 2)
        rank_zero_warn(
            f"{rows} answers at once do not fit into memory: {self.rows} from now on; write "
            f"rollout.init_args.engine.init_args.rows={self.rows} to begin with that"
        )


def idle(model: CausalLM) -> Draw:
    """What a rank without prompts draws while others do."""
    return Draw(tuple(end_tokens(model.transformer, model.tokenizer)[:1]), Sampling(), 1)


def room(model: CausalLM, prompt: Sequence[int], wanted: int) -> int:
    """How long an answer may be, within the model's positions."""
    config = model.transformer.config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return wanted
    if len(prompt) >= limit:
        raise KDError(
            f"a prompt of {len(prompt)} tokens leaves no room for an answer in the model's {limit} "
            "positions: shorten the prompts (data.max_length)"
        )
    return min(wanted, limit - len(prompt))


@contextmanager
def voice(teacher: Teacher, who: str) -> Iterator[CausalLM]:
    """The model with which a teacher speaks, token by token."""
    if isinstance(teacher, AdapterOff):
        with teacher.without_adapters():
            yield teacher.model
    elif isinstance(teacher, (LocalTeacher, MovingAverage)):
        yield teacher.model
    else:
        raise no_voice(teacher, who)


def no_voice(teacher: Teacher, who: str) -> KDError:
    """The error of a teacher that is not in this process."""
    return KDError(
        f"{who} draws with the teacher's own weights, and {type(teacher).__name__} has none in "
        "this process: choose LocalTeacher, AdapterOff or MovingAverage, or elicit its answers "
        "beforehand (kd elicit) and use FromData"
    )


def speaks(teacher: Teacher) -> bool:
    """Whether `voice` has a model for it."""
    return isinstance(teacher, (AdapterOff, LocalTeacher, MovingAverage))
