"""What rollouts share that draw answers token by token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.answers import Answer, Asked
from kd_lightning.rollouts.auto import Auto
from kd_lightning.rollouts.base import Moment, Rollout
from kd_lightning.rollouts.chance import number
from kd_lightning.rollouts.conditions import Conditions
from kd_lightning.rollouts.engines import Engine, room
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import CONDITION, Completion, Sampling, Source

FREE = Sampling(temperature=1.0)
"""The policy itself: temperature 1, all tokens."""


class DrawnAnswers(Rollout, ABC):
    """`n` answers to each prompt, drawn by seeds of their own."""

    source = Source.STUDENT
    """Whose words they are."""
    elsewhere = False
    """Whether an engine with a copy of the student's weights may draw."""

    def __init__(
        self,
        n: int = 1,
        sampling: Sampling = FREE,
        mask_truncated: bool = False,
        document_prompt: int = 16,
        engine: Engine | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        """Store the settings.

        Args:
            n: Answers to each prompt; a group of them is compared by losses that do so.
            sampling: How they are drawn. Its temperature is not the loss's; `seed` adds to the
                run's.
            mask_truncated: Learn nothing from answers that were cut at the length limit.
            document_prompt: Tokens of a document (text without roles) that are given; the rest is
                drawn.
            engine: What draws; null: Auto.
            conditions: What the prompt is given beside the question while an answer is drawn.
        """
        if n < 1:
            raise KDError(f"n must be at least 1, not {n}")
        if sampling.stop:
            raise KDError("a rollout's answers end at end tokens: leave sampling.stop out")
        if document_prompt < 0:
            raise KDError(f"document_prompt must be at least 0, not {document_prompt}")
        self.n = n
        self.sampling = sampling
        self.mask_truncated = mask_truncated
        self.document_prompt = document_prompt
        self.engine = engine
        self.conditions = conditions
        self._engine = engine or Auto()

    def check(self, teacher: Teacher | None) -> None:
        super().check(teacher)
        if self._engine.served and not self.elsewhere:
            raise KDError(
                f"{type(self._engine).__name__} has the student's weights alone, and "
                f"{type(self).__name__} asks the teacher as it draws: leave engine out"
            )

    @abstractmethod
    def draw(self, draws: Sequence[Draw], moment: Moment) -> list[Drawn]:
        """One answer for each; a collective call."""

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        told = [self._told(row, moment) for row in rows]
        draws = [
            draw
            for row, texts in zip(rows, told, strict=True)
            for draw in self._draws(row, texts, moment)
        ]
        drawn = iter(zip(draws, self.draw(draws, moment), strict=True))
        return [
            [self._answer(row, *next(drawn), text, moment) for text in texts]
            for row, texts in zip(rows, told, strict=True)
        ]

    def _told(self, row: Asked, moment: Moment) -> list[str]:
        """The condition of each answer; "": none."""
        if self.conditions is None:
            return [""] * self.n
        seed = self.sampling.seed
        return [self.conditions.of(row, i, moment, seed) for i in range(self.n)]

    def _draws(self, row: Asked, texts: Sequence[str], moment: Moment) -> list[Draw]:
        prompts = [row.cut(self.document_prompt)] * self.n
        if self.conditions is not None:
            prompts = self.conditions.prompts(row, texts, moment.student)
        seed = number(moment.seed, self.sampling.seed, moment.step, row.name)
        how = replace(self.sampling, seed=seed)
        rooms = [room(moment.student, prompt, how.max_new_tokens) for prompt in prompts]
        return [
            Draw(p, how, most, i) for i, (p, most) in enumerate(zip(prompts, rooms, strict=True))
        ]

    def _answer(self, row: Asked, draw: Draw, drawn: Drawn, text: str, moment: Moment) -> Answer:
        completion = spoken(moment.student, drawn)
        counted = drawn.ended or not self.mask_truncated
        behaviour = drawn.logprobs if self.knows_behaviour else ()
        if self.conditions is None:
            return row.answer(draw.prompt, completion, self.source, behaviour, counted)
        prompt = draw.prompt if self.conditions.trained else row.prompt
        made = row.answer(prompt, completion, self.source, behaviour, counted)
        assert made.example is not None  # conditions refuse a row without
        meta = {**made.example.meta, CONDITION: text}
        return replace(made, example=replace(made.example, meta=meta))


def spoken(model: CausalLM, drawn: Drawn) -> Completion:
    """What was drawn, with its text."""
    text = model.tokenizer.decode(list(drawn.tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(text.strip(), drawn.tokens, drawn.ended, drawn.logprobs)
