"""Small instructions with exact answers, made from a seed: the rows of the demo skill."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from kd_lightning.errors import KDError

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"


@dataclass(frozen=True)
class Item:
    """One instruction with what the right and the slipshod labeller write under it."""

    family: str
    """Which kind of instruction it is."""
    prompt: str
    """The instruction."""
    answer: str
    """The right answer; written steps, if any, stand before `so`."""
    slip: str
    """What one and the same slip makes of it (equal to the answer where it changes nothing)."""


def word(rng: random.Random, least: int, most: int) -> str:
    """A pronounceable word of our own: consonants and vowels in turn."""
    length, first = rng.randint(least, most), rng.randrange(2)
    return "".join(rng.choice((CONSONANTS, VOWELS)[(first + i) % 2]) for i in range(length))


def column_sum(a: int, b: int, carrying: bool) -> str:
    """Two numbers of two digits, added in writing: 47 and 38 are `7+8=15 4+3+1=8 so 85`."""
    ones = a % 10 + b % 10
    carry = ones // 10 if carrying else 0
    tens = a // 10 + b // 10 + carry
    carried = f"+{carry}" if carry else ""
    steps = f"{a % 10}+{b % 10}={ones} {a // 10}+{b // 10}{carried}={tens}"
    return f"{steps} so {tens}{ones % 10}"


def addition(rng: random.Random) -> Item:
    """Two numbers of two digits, added in writing; the slip forgets to carry."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return Item("addition", f"What is {a}+{b}?", column_sum(a, b, True), column_sum(a, b, False))


def reversal(rng: random.Random) -> Item:
    """A word backwards; the slip stops one letter early."""
    text = word(rng, 4, 7)
    return Item("reversal", f"Reverse {text}.", text[::-1], text[:0:-1])


def sorting(rng: random.Random) -> Item:
    """A word's letters in alphabetical order; the slip stops one letter early."""
    text = word(rng, 4, 5)
    ordered = "".join(sorted(text))
    return Item("sorting", f"Sort the letters of {text}.", ordered, ordered[:-1])


def endings(rng: random.Random) -> Item:
    """The last letters of two words; the slip takes the second word's first letter."""
    one, two = (word(rng, 3, 4) for _ in range(2))
    return Item("endings", f"Last letters of {one} {two}?", one[-1] + two[-1], one[-1] + two[0])


def lookup(rng: random.Random) -> Item:
    """A number read from a short list; the slip reads the one before it."""
    names = "abcd"
    numbers = [str(rng.randint(10, 99)) for _ in names]
    asked = rng.randrange(len(names))
    context = ", ".join(f"{name}={number}" for name, number in zip(names, numbers, strict=True))
    return Item("lookup", f"{context}. {names[asked]}?", numbers[asked], numbers[asked - 1])


FAMILIES: dict[str, Callable[[random.Random], Item]] = {
    "addition": addition,
    "reversal": reversal,
    "sorting": sorting,
    "endings": endings,
    "lookup": lookup,
}
"""Name of each family to what draws one item of it."""


SHARES = {"test": (0,), "validation": (1,), "train": (2, 3, 4, 5, 6, 7)}
"""Which eighths of all prompts a split draws from."""

PATIENCE = 2000
"""Draws without a new item after which a family counts as used up."""


def eighth(prompt: str) -> int:
    """0 to 7, a function of the prompt alone: no seed or size can put it into two splits."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 8


def draw(family: str, split: str, count: int, seed: int) -> list[Item]:
    """Distinct items of a family in a split; the same seed gives the same items."""
    rng = random.Random(f"{family}/{split}/{seed}")
    made: dict[str, Item] = {}
    idle = 0
    while len(made) < count:
        item = FAMILIES[family](rng)
        if item.prompt in made or eighth(item.prompt) not in SHARES[split]:
            idle += 1
            if idle == PATIENCE:
                raise KDError(
                    f"the family {family} has about {len(made)} prompts for {split}, {count} are "
                    "asked for: lower the number of rows"
                )
            continue
        made[item.prompt] = item
        idle = 0
    return list(made.values())
