"""Engines that draw with a copy of the student's weights, and say how old the copy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.models.generation import end_tokens
from kd_lightning.models.scoring import scored_answers
from kd_lightning.rollouts.chance import number
from kd_lightning.rollouts.engines import Before, Engine, room
from kd_lightning.types import Sampling

Told = Literal["engine", "student"]

WORDS = " ".join(map(str, range(1, 40)))
"""A text in any tokenizer, by which an engine is compared with the student."""
PROMPT, ANSWER, ANSWERS = 40, 16, 4
"""Tokens of it, tokens of each answer to it, answers."""


class ServedEngine(Engine, ABC):
    """Draws with weights that the callback `SyncRolloutWeights` brings.

    An engine made for speed computes a little differently from the model that is trained (kernels,
    precision), so its log-probabilities are not quite the student's: `ImportanceWeighted`, and
    `logprobs: student`, are for that. Draws have seeds of their own, functions of names as
    everywhere; the same seed gives the same answer as far as the engine computes alike whatever
    else is in its batch, which such engines do not promise. So a resumed run is the undisturbed one
    only with greedy drawing, and there up to ties.
    """

    served = True
    everywhere = False
    """Whether each process has a copy of its own that is to be given the weights."""

    def __init__(self, logprobs: Told = "engine") -> None:
        """`logprobs`: whose are the answers' behaviour."""
        self.logprobs = logprobs
        self.loaded: int | None = None
        """The optimizer step of its weights; None: they are not known."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Draw with the weights of a Hugging Face folder from now on."""

    @abstractmethod
    def drawn(self, requests: Sequence[Draw], ends: list[int]) -> list[Drawn]:
        """One answer for each, with log-probabilities if they are the engine's."""

    def close(self) -> None:
        """Let go of what it holds."""

    def draw(
        self, model: CausalLM, draws: Sequence[Draw], before: Before | None = None
    ) -> list[Drawn]:
        who = type(self).__name__
        if before is not None:
            raise KDError(
                f"{who} draws elsewhere, where nothing can change its scores: leave engine out"
            )
        if self.loaded is None:
            raise KDError(
                f"{who} does not have the student's weights: add the callback SyncRolloutWeights "
                "(trainer.callbacks)"
            )
        if not draws:
            return []
        made = self.drawn(draws, end_tokens(model.transformer, model.tokenizer))
        if self.logprobs == "student":
            return self._scored(model, draws, made)
        return made

    def apart(self, model: CausalLM) -> float:
        """How far the engine's log-probabilities are from a model's, in nats a token, on average.

        Over the tokens of a few drawn answers. With the same weights: rounding.
        """
        prompt = tuple(model.tokenizer.encode(WORDS))[:PROMPT]
        how = Sampling(ANSWER, temperature=1.0)
        wide = room(model, prompt, ANSWER)
        draws = [Draw(prompt, how, wide, number) for number in range(ANSWERS)]
        made = self.drawn(draws, end_tokens(model.transformer, model.tokenizer))
        own = scored_answers(model, [(prompt, each.tokens) for each in made])
        gaps = [
            abs(a - b)
            for each, told in zip(made, own, strict=True)
            for a, b in zip(each.logprobs, told, strict=True)
        ]
        return sum(gaps) / len(gaps)

    def _scored(self, model: CausalLM, draws: Sequence[Draw], made: Sequence[Drawn]) -> list[Drawn]:
        """The same answers with what the student itself says of their tokens."""
        if model.placement is not None:
            raise KDError(
                "logprobs: student needs the student's weights in one process, and they are "
                "sharded: write engine.init_args.logprobs=engine and ImportanceWeighted"
            )
        told = scored_answers(
            model, [(d.prompt, each.tokens) for d, each in zip(draws, made, strict=True)]
        )
        return [
            each._replace(logprobs=tuple(values)) for each, values in zip(made, told, strict=True)
        ]


def seed_of(draw: Draw) -> int:
    """A seed for one answer, of what `Draw.shares` is a function of; 31 bits."""
    return number(draw.sampling.seed, draw.number, draw.prompt) >> 32


def checked(tokens: Sequence[int], logprobs: Sequence[float], cut: bool, ends: list[int],
            who: str) -> Drawn:  # fmt: skip
    """An answer as it came, if it is one."""
    if len(logprobs) != len(tokens):
        raise KDError(
            f"{who} told {len(logprobs)} log-probabilities for {len(tokens)} tokens: it must give "
            "one for each (vLLM 0.11 or later)"
        )
    if not cut and (not tokens or tokens[-1] not in ends):
        raise KDError(
            f"{who} ended an answer without an end token of the student's: let it serve the "
            "student's own folder, whose generation_config.json names them"
        )
    return Drawn(tuple(tokens), not cut, tuple(logprobs))
