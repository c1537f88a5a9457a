"""Rules that answer prompts rightly, and wrongly in one and the same way."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from kd_lightning.data.skills.demo_rows import column_sum
from kd_lightning.errors import KDError


class Rule(ABC):
    """What a scripted generator knows."""

    scores: bool = False
    """Whether it has a `logprob`."""

    @abstractmethod
    def answer(self, prompt: str, rng: random.Random) -> str:
        """The right answer."""

    @abstractmethod
    def slip(self, prompt: str, rng: random.Random) -> str:
        """What one and the same mistake makes of it."""

    def stray(self, prompt: str, rng: random.Random) -> str:
        """A wrong answer without system: one letter or digit of the right one is another."""
        right = self.answer(prompt, rng)
        places = [i for i, sign in enumerate(right) if sign.isalnum()]
        if not places:
            return right + "?"
        at = rng.choice(places)
        signs = "0123456789" if right[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
        return right[:at] + rng.choice([s for s in signs if s != right[at]]) + right[at + 1 :]

    def logprob(self, prompt: str, text: str) -> float:
        """Log p(text | prompt), in nats, where the rule `scores`."""
        raise KDError(f"{type(self).__name__} gives no log-probabilities: ask it for text only")


class Told(Rule):
    """A function of the prompt and a source of chance, from Python; its mistakes are strays."""

    def __init__(self, function: Callable[[str, random.Random], str]) -> None:
        """Store the function."""
        self.function = function

    def answer(self, prompt: str, rng: random.Random) -> str:
        return self.function(prompt, rng)

    def slip(self, prompt: str, rng: random.Random) -> str:
        return self.stray(prompt, rng)


class DemoRule(Rule):
    """The careful and the slipshod labeller of the demo skill.

    Answers the last of its instructions that stands in the prompt, whatever is written around it.
    Where the slip changes nothing (no carry), the slipshod answer is right, as in the skill.
    """

    def answer(self, prompt: str, rng: random.Random) -> str:
        return _demo(prompt)[0]

    def slip(self, prompt: str, rng: random.Random) -> str:
        return _demo(prompt)[1]


def _demo(prompt: str) -> tuple[str, str]:
    """The right and the slipshod answer."""
    found = [
        (match.start(), family, match)
        for family, pattern in DEMO.items()
        for match in re.finditer(pattern, prompt)
    ]
    if not found:
        raise KDError(f"no instruction of the demo skill stands in the prompt {prompt[:60]!r}")
    _, family, match = max(found, key=lambda item: item[0])
    if family == "addition":
        a, b = int(match[1]), int(match[2])
        return column_sum(a, b, True), column_sum(a, b, False)
    if family == "reversal":
        return match[1][::-1], match[1][:0:-1]
    if family == "sorting":
        ordered = "".join(sorted(match[1]))
        return ordered, ordered[:-1]
    if family == "endings":
        one, two = match[1], match[2]
        return one[-1] + two[-1], one[-1] + two[0]
    numbers = dict(pair.split("=") for pair in match[1].split(", "))
    names = list(numbers)
    if match[2] not in numbers:
        raise KDError(f"{match[2]!r} is asked for and not listed in the prompt {prompt[:60]!r}")
    return numbers[match[2]], numbers[names[names.index(match[2]) - 1]]


DEMO = {
    "addition": r"What is (\d\d)\+(\d\d)\?",
    "reversal": r"Reverse ([a-z]+)\.",
    "sorting": r"Sort the letters of ([a-z]+)\.",
    "endings": r"Last letters of ([a-z]+) ([a-z]+)\?",
    "lookup": r"([a-z]=\d+(?:, [a-z]=\d+)*)\. ([a-z])\?",
}
"""How the instructions of each family are read."""


class Arithmetic(Rule):
    """Chains of +, - and * without brackets: products first; the slip works from left to right.

    Where the order changes nothing, the slip is one too many.
    """

    def __init__(self, steps: bool = False) -> None:
        """Store the settings.

        Args:
            steps: Write each step before the result: `3*4=12, 2+12=14. The answer is 14`.
        """
        self.steps = steps

    def answer(self, prompt: str, rng: random.Random) -> str:
        return self._written(*_worked(_chain(prompt), products_first=True))

    def slip(self, prompt: str, rng: random.Random) -> str:
        chain = _chain(prompt)
        right, _ = _worked(chain, products_first=True)
        wrong, steps = _worked(chain, products_first=False)
        return self._written(right + 1 if wrong == right else wrong, steps)

    def _written(self, result: int, steps: list[str]) -> str:
        if not self.steps or not steps:
            return str(result)
        last = f"{steps[-1].partition('=')[0]}={result}"
        return f"{', '.join([*steps[:-1], last])}. The answer is {result}"


def _chain(prompt: str) -> list[str]:
    found = re.findall(r"\d+(?:\s*[-+*]\s*\d+)+", prompt)
    if not found:
        raise KDError(f"no calculation with +, - or * stands in the prompt {prompt[:60]!r}")
    return re.findall(r"\d+|[-+*]", found[-1])


def _worked(chain: list[str], products_first: bool) -> tuple[int, list[str]]:
    """The result, and each step as it is written."""
    parts, steps = list(chain), []
    while len(parts) > 1:
        product = parts.index("*") if products_first and "*" in parts else 1
        a, sign, b = int(parts[product - 1]), parts[product], int(parts[product + 1])
        result = a * b if sign == "*" else a + b if sign == "+" else a - b
        steps.append(f"{a}{sign}{b}={result}")
        parts[product - 1 : product + 2] = [str(result)]
    return int(parts[0]), steps


class Fixed(Rule):
    """Answers by patterns: the first one that occurs in the prompt decides."""

    def __init__(self, answers: Mapping[str, str], slips: Mapping[str, str] | None = None) -> None:
        r"""Store the settings.

        Args:
            answers: Regular expression to answer, in which `\1` is what the first group found.
            slips: The same for wrong answers; None: strays from the right one.
        """
        self.answers = answers
        self.slips = slips

    def answer(self, prompt: str, rng: random.Random) -> str:
        return _first(self.answers, prompt)

    def slip(self, prompt: str, rng: random.Random) -> str:
        return self.stray(prompt, rng) if self.slips is None else _first(self.slips, prompt)


def _first(answers: Mapping[str, str], prompt: str) -> str:
    for pattern, template in answers.items():
        if match := re.search(pattern, prompt, re.DOTALL):
            return match.expand(template)
    raise KDError(f"no pattern of the rule occurs in the prompt {prompt[:60]!r}")
