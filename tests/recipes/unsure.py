"""A tiny student that is unsure: its most likely answers are right, of those that it draws half."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_lightning.teachers.generator import Request
from tests.recipes.kit import Learner, learn
from tests.recipes.tasks import words
from tests.recipes.tiny_speaker import Speaking, last

STEPS = "From behind: "
"""The reasoning in front of each answer, in the form that the recipes' parsers read."""


def tasks(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Words to be reversed: for the start, for the rounds, and to measure on."""
    rows = words(1200, seed)
    return rows[:700], rows[700:1000], rows[1000:]


def unsure(folder: Path, rows: Sequence[Mapping[str, str]], seed: int) -> Learner:
    """Trained on four answers to each question; every second has a letter that was drawn."""
    rng = random.Random(f"unsure/{seed}")
    taught = []
    for row in [row for row in rows for _ in range(4)]:
        answer = row["reference"]
        if rng.random() < 0.5:
            place = rng.randrange(len(answer))
            answer = answer[:place] + rng.choice("abcdefgh") + answer[place + 1 :]
        taught.append({"prompt": row["prompt"], "answer": answer})
    return learn(folder, taught, seed, steps=400, width=64)


def torn(folder: Path, rows: Sequence[Mapping[str, str]], seed: int) -> Learner:
    """Trained on one answer to each question; every third lacks its last letter.

    Such mistakes do not average out. There must be many questions, or it learns by heart which of
    them were answered wrongly, and is torn no more.
    """
    rng = random.Random(f"torn/{seed}")
    taught = [
        {
            "prompt": row["prompt"],
            "answer": row["reference"][: -1 if rng.random() < 1 / 3 else None],
        }
        for row in rows
    ]
    return learn(folder, taught, seed, steps=400, width=64)


def speaking(learner: Learner) -> Speaking:
    """The student behind the recipes' prompts."""

    def heard(request: Request) -> str:
        return last(request)

    return Speaking(learner, heard, lambda told: f"{STEPS}\nAnswer: {told}")


def taught(answer: str) -> str:
    """What the student learns of a record's answer."""
    return answer.rpartition("Answer: ")[2]


def drawn(learner: Learner, rows: Sequence[Mapping[str, str]], seed: int = 0) -> float:
    """Share of questions to which one answer that is drawn is right (pass@1)."""
    said = learner.answers([row["prompt"] for row in rows], temperature=1.0, seed=seed)
    return sum(a == row["reference"] for a, row in zip(said, rows, strict=True)) / len(rows)
