"""Small tasks whose right answers are known: what scripted teachers know and students learn."""

from __future__ import annotations

import random


def sums(count: int, seed: int, terms: int = 4, base: int = 10) -> list[dict[str, str]]:
    """Sums modulo 10 (or another base), of which `chain` writes the partial sums."""
    rng = random.Random(f"sums/{seed}")
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        digits = [rng.randrange(base) for _ in range(terms)]
        question = "+".join(map(str, digits))
        made[question] = {"prompt": question, "reference": str(sum(digits) % base)}
    return list(made.values())


def chain(question: str, base: int = 10) -> str:
    """The partial sums of a question and the answer behind them: 3+4+8 is `7 5 so 5`."""
    digits = [int(d) for d in question.split("+")]
    parts = [sum(digits[: i + 1]) % base for i in range(1, len(digits))]
    return " ".join(map(str, parts)) + f" so {parts[-1]}"


def last(answer: str) -> str:
    """What stands behind `so`, else the last word."""
    return answer.rpartition("so ")[2].strip() or answer.strip()


def words(count: int, seed: int, least: int = 4, most: int = 6) -> list[dict[str, str]]:
    """Words to be reversed."""
    rng = random.Random(f"words/{seed}")
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        text = "".join(rng.choice("abcdefgh") for _ in range(rng.randint(least, most)))
        made[text] = {"prompt": text, "reference": text[::-1]}
    return list(made.values())


LETTERS = "abcdefghijklmnopqrst"
KINDS = 4


def kinds(seed: int) -> dict[str, int]:
    """The hidden kind of each letter, equally many of each."""
    rng = random.Random(f"kinds/{seed}")
    return {letter: i % KINDS for i, letter in enumerate(rng.sample(LETTERS, len(LETTERS)))}


def pairs(seed: int) -> list[dict[str, str]]:
    """Every pair of letters, in any order; its rationale names their kinds, its label their sum."""
    found = kinds(seed)
    every = [one + other for one in LETTERS for other in LETTERS if one != other]
    random.Random(f"pairs/{seed}").shuffle(every)
    return [
        {
            "prompt": pair,
            "rationale": "".join(str(found[letter]) for letter in pair),
            "reference": "xyzw"[sum(found[letter] for letter in pair) % KINDS],
        }
        for pair in every
    ]
