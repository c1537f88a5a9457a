"""A tiny student behind prompts that it could never read whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from kd_lightning.teachers.generator import Generator, Reply, Request
from kd_lightning.types import Completion, Sampling, Signal
from tests.recipes.kit import Learner

TOKENS = 40


class Speaking(Generator):
    """Is told the question alone, and its words are put into the form that was asked for.

    `hear` finds in the request what the student is asked; `say` writes its answer as the recipe's
    parser reads it.
    """

    offers = frozenset({Signal.TEXT})

    def __init__(
        self,
        learner: Learner,
        hear: Callable[[Request], str],
        say: Callable[[str], str],
        name: str = "student",
    ) -> None:
        """Store the student and both ways."""
        self._learner = learner
        self._hear = hear
        self._say = say
        self.name = name

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        alike: dict[Sampling, list[tuple[int, Request]]] = defaultdict(list)
        for number, request in enumerate(requests):
            how = replace(request.sampling, seed=0, max_new_tokens=TOKENS, stop=())
            alike[how].append((number, request))
        for how, several in alike.items():
            drawn = replace(how, seed=several[0][1].sampling.seed)
            told = iter(self._told([(self._hear(r), r.n) for _, r in several], drawn))
            for number, request in several:
                texts = [self._say(next(told)) for _ in range(request.n)]
                yield [(number, Reply(tuple(Completion(text, (), True) for text in texts)))]

    def _told(self, asked: list[tuple[str, int]], how: Sampling) -> list[str]:
        prompts = [question for question, n in asked for _ in range(n)]
        return self._learner.answers(
            prompts, TOKENS, temperature=how.temperature, top_k=how.top_k, seed=how.seed
        )


def last(request: Request) -> str:
    """The text of the last turn."""
    return request.prompt.messages[-1].content


def stepwise(told: str) -> str:
    """`7 5 so 5` as the template `rationale` asks for it."""
    steps, found, answer = told.rpartition(" so ")
    return f"{steps}\nAnswer: {answer}" if found else told


def plainly(answer: str) -> str:
    """The way back."""
    return answer.replace("\nAnswer: ", " so ")
