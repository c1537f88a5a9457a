"""Answers that are scored by rules: about the word that was asked for, short, clean, whole."""

from __future__ import annotations

import re

from tests.recipes.speakers import share


def points(prompt: str, answer: str) -> int:
    """How many of the four rules an answer satisfies."""
    return sum((prompt in answer, len(answer) <= 12, "#" not in answer, answer.endswith(".")))


def ideal(prompt: str) -> str:
    """What satisfies all."""
    return f"ok {prompt}."


def poor(prompt: str) -> str:
    """What satisfies none: in one and the same way."""
    return f"# about {prompt[::-1]} I know"


def corpus(prompts: list[str], bad: float = 0.6) -> list[dict[str, str]]:
    """Prompts with answers, of which a share is poor."""
    return [
        {"prompt": p, "answer": poor(p) if share("poor", p) < bad else ideal(p)} for p in prompts
    ]


def shown(text: str) -> tuple[str, str]:
    """The task and the response that a reflection template shows."""
    found = re.search(r"Task:\n(.*)\n\nResponse:\n(.*)\n", text)
    assert found is not None
    return found[1], found[2]
