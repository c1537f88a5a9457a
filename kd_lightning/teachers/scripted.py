"""A generator that follows a rule and errs as often as it is told to."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request, TokenLogprobs, Usage
from kd_lightning.teachers.rules import Rule, Told
from kd_lightning.types import Completion, Prompt, Signal


class Scripted(Generator):
    """For tests and demonstrations: right answers, of which a part is wrong in a known way.

    Whether it errs on a prompt is a function of `seed` and the prompt's text. Only random errors in
    answers that are drawn (temperature above 0) change from one answer to the next, with the
    request's seed: those a vote can find, systematic ones it cannot.
    """

    def __init__(
        self,
        rule: Rule | Callable[[str, random.Random], str],
        error_rate: float = 0.0,
        errors: Literal["systematic", "random"] = "systematic",
        seed: int = 0,
        name: str = "scripted",
        licence: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            rule: What is right, and how one errs; in Python also a function of the last user turn
                and a `random.Random`.
            error_rate: Share of the prompts (of the answers, where they are drawn) that it errs on.
            errors: `systematic`: the rule's slip; `random`: one letter or digit is another.
            seed: Of the errors.
            name: How records and cards call it.
            licence: Terms of its outputs.
        """
        self.rule = rule
        self.error_rate = error_rate
        self.errors = errors
        self.seed = seed
        self.name = name
        self.licence = licence
        if not 0 <= error_rate <= 1:
            raise KDError(f"error_rate is a share from 0 to 1, not {error_rate}")

    @property
    def _rule(self) -> Rule:
        return self.rule if isinstance(self.rule, Rule) else Told(self.rule)

    @property
    def offers(self) -> frozenset[Signal]:  # type: ignore[override]
        """Text; log-probabilities where the rule has some."""
        return frozenset({Signal.TEXT} | ({Signal.LOGPROB} if self._rule.scores else set()))

    @property
    def identity(self) -> str:
        """The rule with its settings; a function of Python by its name only."""
        rule = self._rule
        of = {k: v if not callable(v) else v.__qualname__ for k, v in vars(rule).items()}
        told = [type(rule).__name__, of, self.error_rate, self.errors, self.seed]
        return f"Scripted:{json.dumps(told, default=str)}"

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        for number, request in enumerate(requests):
            try:
                yield [(number, self._reply(request))]
            except KDError as error:
                yield [(number, Reply(failure=str(error)))]

    def _reply(self, request: Request) -> Reply:
        text = spoken(request.prompt)
        usage = Usage(len(text.split()))
        if request.kind is Kind.GENERATE:
            made = tuple(self._completion(text, request, i) for i in range(request.n))
            words = sum(len(completion.text.split()) for completion in made)
            return Reply(made, usage=usage + Usage(0, words))
        values = [self._rule.logprob(text, given) for given in request.texts]
        if request.kind is Kind.CHOICES:
            return Reply(choices=tuple(values), usage=usage)
        pairs = zip(request.texts, values, strict=True)
        return Reply(scores=tuple(TokenLogprobs((g,), (v,)) for g, v in pairs), usage=usage)

    def _completion(self, prompt: str, request: Request, number: int) -> Completion:
        how = request.sampling
        own: list[object] = [self.seed, prompt]
        if self.errors == "random" and how.temperature > 0:
            own += [how.seed, number]
        rng = random.Random(json.dumps(own))
        wrong = rng.random() < self.error_rate
        if not wrong:
            text = self._rule.answer(prompt, rng)
        elif self.errors == "systematic":
            text = self._rule.slip(prompt, rng)
        else:
            text = self._rule.stray(prompt, rng)
        found = [text.find(stop) for stop in how.stop]
        text = text[: min((at for at in found if at >= 0), default=len(text))]
        words = re.findall(r"\s*\S+", text)
        cut = len(words) > how.max_new_tokens
        return Completion("".join(words[: how.max_new_tokens]) if cut else text, (), not cut)


def spoken(prompt: Prompt) -> str:
    """What a rule reads: the last turn that is not the assistant's."""
    turns = [m.content for m in prompt.messages if m.role != "assistant"]
    return turns[-1] if turns else ""
