"""What a prompt is given beside the question when an answer is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.rollouts.answers import Asked
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.chance import number
from kd_lightning.types import Example, Message

QUESTION = "{prompt}"
"""Where the question stands in a condition."""


@dataclass(frozen=True)
class Conditions:
    """Answers are drawn as if more had been asked: for the best quality, of a class, harmlessly.

    Source: Lu et al. 2022 (Quark), arXiv 2205.13636 (the best quantile's token); Yang et al. 2023
    (RLCD), arXiv 2307.12950 (two affixes, an answer each); Wang et al. 2023 (OpenChat), arXiv
    2309.11235 (a class's token).
    """

    texts: tuple[str, ...]
    """Each a condition; `{prompt}`: where the last question stands in it, else it stands before."""
    role: Literal["user", "system"] = "user"
    """Whose words it is part of; system: before what a system turn says, or a turn of its own."""
    pick: Literal["in_turn", "drawn"] = "in_turn"
    """in_turn: answer 0 to a prompt has the first, answer 1 the second, ...; drawn: each by lot."""
    trained: bool = False
    """Whether it stands in the row that is learned; False: it serves the drawing alone."""
    template: str = "auto"
    """As for the data module."""
    template_arguments: Mapping[str, Any] | None = None
    """As for the data module."""

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise KDError("conditions.texts must name at least one text, and none may be empty")
        if self.role == "system" and any(QUESTION in text for text in self.texts):
            raise KDError(
                f"a system turn holds no question: leave {QUESTION} out of conditions.texts, or "
                "write conditions.role=user"
            )

    def of(self, row: Asked, answer: int, moment: Moment, seed: int) -> str:
        """Which one an answer to a row is drawn under."""
        place = answer
        if self.pick == "drawn":
            place = number(moment.seed, seed, moment.step, row.name, answer, "condition")
        return self.texts[place % len(self.texts)]

    def prompts(self, row: Asked, texts: Sequence[str], model: CausalLM) -> list[tuple[int, ...]]:
        """The row's prompt with each of the conditions, as ids."""
        example = row.given.example
        if example is None or example.plain or not example.prompt:
            name = "without example" if example is None else example.id
            raise KDError(
                f"row {name} is no conversation, and conditions belong to a question: leave "
                "conditions out, or give it rows with a question"
            )
        arguments = dict(self.template_arguments or {}) or None
        encoder = Encoder(model.tokenizer, self.template, arguments)
        if tuple(encoder.prompt(example)) != row.prompt:
            raise KDError(
                f"row {example.id} was not cut by the template of the conditions, or was shortened "
                "after it: write the data module's template (and template_arguments) as "
                "conditions.template, and data.truncation=drop"
            )
        gold = Message("assistant", example.answer)
        asked = {text: (*self.turns(example, text), gold) for text in texts}
        made = {
            text: tuple(encoder.prompt(replace(example, messages=turns)))
            for text, turns in asked.items()
        }
        return [made[text] for text in texts]

    def turns(self, example: Example, text: str) -> tuple[Message, ...]:
        """What is asked, with the condition."""
        turns = list(example.prompt)
        if self.role == "system":
            first = turns[0]
            if first.role == "system":
                return (replace(first, content=f"{text}\n\n{first.content}"), *turns[1:])
            return (Message("system", text), *turns)
        last = next((i for i, m in reversed(list(enumerate(turns))) if m.role == "user"), None)
        if last is None:
            raise KDError(f"row {example.id} asks nothing: conditions belong to a question")
        told = turns[last].content
        whole = text.replace(QUESTION, told) if QUESTION in text else f"{text} {told}"
        turns[last] = replace(turns[last], content=whole)
        return tuple(turns)
