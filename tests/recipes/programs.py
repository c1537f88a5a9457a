"""Tiny programs: `cG3` is x*3 and a number of two digits, one for each letter of the name.

A tiny student has learned the names, some letters wrongly: it fails on all names with those. And it
has learned to read errors, of numbers that mean nothing: `cG3 x*3+15 47` asks for x*3+47.
"""

from __future__ import annotations

import random
from string import ascii_lowercase, ascii_uppercase

from kd_lightning.security import sandbox

HEAD = "f=lambda x:"
WEAK = 3
"""Letters of each case that the student was told wrongly."""
USES = {"held": 0, "tasks": 500, "teacher": 1500, "corpus": 2500}
"""Where the names for a use begin in the list of all."""


class Language:
    """What the letters mean, and what the student was told that they mean."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(f"language/{seed}")
        self.digits: dict[str, str] = {}
        self.believed: dict[str, str] = {}
        for case, digits in ((ascii_lowercase, "123456789"), (ascii_uppercase, "0123456789")):
            weak = rng.sample(case, WEAK)
            for letter in case:
                digit, other = rng.sample(digits, 2)
                self.digits[letter] = digit
                self.believed[letter] = other if letter in weak else digit
        self.all = [
            a + b + n for a in ascii_lowercase for b in ascii_uppercase for n in "123456789"
        ]
        rng.shuffle(self.all)

    def names(self, use: str, count: int) -> list[str]:
        """Names, all different, and others for each use."""
        return self.all[USES[use] : USES[use] + count]

    def number(self, name: str) -> str:
        """The number that the letters of a name mean."""
        return self.digits[name[0]] + self.digits[name[1]]

    def right(self, name: str) -> str:
        """The program, without its head."""
        return f"x*{name[2]}+{self.number(name)}"

    def mistaken(self, name: str) -> str:
        """The program as the student was told it."""
        return f"x*{name[2]}+{self.believed[name[0]] + self.believed[name[1]]}"

    def corpus(self, count: int) -> list[dict[str, str]]:
        """What the student has learned from: names, and in a fifth of the rows errors."""
        rng = random.Random(f"corpus/{self.seed}")
        made = []
        for name in self.names("corpus", count):
            told = self.mistaken(name)
            number = str(rng.randrange(10, 100))
            reads = {"prompt": f"{name} {told} {number}", "answer": f"x*{name[2]}+{number}"}
            made.append(reads if rng.random() < 0.2 else {"prompt": name, "answer": told})
        return made

    def task(self, name: str) -> dict[str, object]:
        """A task with two tests, of which the first says what it expected."""
        n, number = int(name[2]), int(self.number(name))
        first = f"assert f(0)=={number},f'{{f(0)}} and not {number}'"
        return {"prompt": name, "tests": [first, f"assert f(3)=={3 * n + number}"]}


def errors(task: dict[str, object], program: str) -> str:
    """What a program says when its tests are run; nothing where they pass."""
    tests = task["tests"]
    assert isinstance(tests, list)
    done = sandbox.run(
        "\n".join([HEAD + program, *tests]), allowed=True, limits=sandbox.Limits(seconds=60.0)
    )
    return "" if done.passed else done.output


def repair(name: str, program: str, said: str) -> str:
    """A failed program and what was said to it, as a tiny student reads them."""
    return f"{name} {program} {said.strip()[-2:]}"
