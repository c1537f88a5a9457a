"""A generator that is a function of the whole request, and the dialogues that some of them lead."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator

from kd_lightning.teachers.generator import Generator, Reply, Request
from kd_lightning.teachers.scripted import spoken
from kd_lightning.types import Completion, Prompt, Signal


class Says(Generator):
    """Says what a function makes of a prompt; chance differs from one drawn answer to the next."""

    offers = frozenset({Signal.TEXT})

    def __init__(
        self, function: Callable[[Prompt, random.Random], str], name: str = "says"
    ) -> None:
        self.function = function
        self.name = name

    @property
    def identity(self) -> str:
        return f"Says:{self.name}:{self.function.__qualname__}"

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        for number, request in enumerate(requests):
            told = [spoken(request.prompt), request.sampling.seed]
            made = [
                self.function(request.prompt, random.Random(json.dumps([*told, i])))
                for i in range(request.n)
            ]
            yield [(number, Reply(tuple(Completion(text, (), True) for text in made)))]


def share(*of: object) -> float:
    """A number from 0 to 1 that is always the same for the same things: systematic errors."""
    return random.Random(json.dumps(of)).random()


SLOTS = {"bus": 2, "car": 3, "bed": 2, "cup": 3, "map": 2, "pen": 3, "hat": 2, "box": 3}
"""What may be ordered, and how many things must be said about it."""


def goals(count: int, seed: int) -> list[str]:
    """Orders such as `bus k4`, all different, equally many of each kind."""
    rng = random.Random(f"goals/{seed}")
    made: dict[str, None] = {}
    while len(made) < count:
        name = list(SLOTS)[len(made) % len(SLOTS)]
        made[name + " " + "".join(rng.choice("abcdefgh1234") for _ in range(SLOTS[name]))] = None
    return list(made)


def talk(goal: str) -> list[tuple[str, str]]:
    """The rounds in which an order is told bit by bit, and repeated as a whole at the end."""
    name, told = goal.split()
    asked = [name, *told]
    return [(said, goal if i == len(told) else f"{i + 1}?") for i, said in enumerate(asked)]


def upto(goal: str, rounds: int) -> str:
    """The dialogue before the assistant's turn of a round, as the tiny students read it."""
    done = "".join(f"{said}|{answer}</s>" for said, answer in talk(goal)[: rounds - 1])
    return done + talk(goal)[rounds - 1][0]
