"""Small tasks whose right answers are known: what scripted teachers know and students learn."""

from __future__ import annotations

import random


def sums(count: int, seed: int, terms: int = 4) -> list[dict[str, str]]:
    """Sums modulo 10, each with its chain of partial sums: 3+4+8 is `7 5 so 5`."""
    rng = random.Random(f"sums/{seed}")
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        digits = [rng.randrange(10) for _ in range(terms)]
        question = "+".join(map(str, digits))
        made[question] = {"prompt": question, "reference": str(sum(digits) % 10)}
    return list(made.values())


def chain(question: str) -> str:
    """The partial sums of a question, modulo 10, and the answer behind them."""
    digits = [int(d) for d in question.split("+")]
    parts = [sum(digits[: i + 1]) % 10 for i in range(1, len(digits))]
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
