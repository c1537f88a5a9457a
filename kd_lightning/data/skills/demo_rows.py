"""Small instructions with exact answers, made from a seed: the rows of the demo skill."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"
NAMES = ("Ann", "Bob", "Cat", "Dan", "Eva", "Fay", "Gus", "Ida", "Jim", "Kim", "Leo", "Max")


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
    """Addition in writing, from the ones up: `347 + 285` is `7+5=12 4+8+1=13 3+2+1=6 so 632`."""
    steps: list[str] = []
    digits: list[str] = []
    carry = 0
    columns = list(zip(reversed(str(a)), reversed(str(b)), strict=True))
    for x, y in columns:
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{f'+{carry}' if carry else ''}={total}")
        digits.append(str(total % 10))
        carry = total // 10 if carrying else 0
    if total > 9:
        digits.append("1")
    return f"{' '.join(steps)} so {''.join(reversed(digits))}"


def addition(rng: random.Random) -> Item:
    """Two numbers of three digits, added in writing; the slip forgets every carry."""
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    return Item(
        "addition", f"What is {a} + {b}?", column_sum(a, b, True), column_sum(a, b, False)
    )


def reversal(rng: random.Random) -> Item:
    """A word backwards; the slip leaves the first letter where it is."""
    text = word(rng, 4, 7)
    return Item("reversal", f"Spell {text} backwards.", text[::-1], text[0] + text[:0:-1])


def sorting(rng: random.Random) -> Item:
    """A word's letters in alphabetical order; the slip leaves the first letter where it is."""
    text = word(rng, 4, 6)
    slip = text[0] + "".join(sorted(text[1:]))
    return Item("sorting", f"Sort the letters of {text}.", "".join(sorted(text)), slip)


def endings(rng: random.Random) -> Item:
    """The last letters of three words, in capitals; the slip takes the first letters."""
    words = [word(rng, 3, 5) for _ in range(3)]
    return Item(
        "endings",
        f"Last letters of {' '.join(words)} in capitals?",
        "".join(w[-1] for w in words).upper(),
        "".join(w[0] for w in words).upper(),
    )


def lookup(rng: random.Random) -> Item:
    """Who has how many, read from a line above; the slip reads the neighbour's number."""
    names = rng.sample(NAMES, 4)
    numbers = [str(rng.randint(10, 99)) for _ in names]
    asked = rng.randrange(4)
    line = ", ".join(f"{n} {k}" for n, k in zip(names, numbers, strict=True))
    return Item(
        "lookup", f"{line}. How many has {names[asked]}?", numbers[asked], numbers[asked - 1]
    )


FAMILIES: dict[str, Callable[[random.Random], Item]] = {
    "addition": addition,
    "reversal": reversal,
    "sorting": sorting,
    "endings": endings,
    "lookup": lookup,
}
"""Name of each family to what draws one item of it."""


def items(family: str, seed: int) -> Iterator[Item]:
    """Endless distinct items of a family; the same seed gives the same items."""
    rng = random.Random(f"{family}/{seed}")
    seen: set[str] = set()
    while True:
        item = FAMILIES[family](rng)
        if item.prompt not in seen:
            seen.add(item.prompt)
            yield item
