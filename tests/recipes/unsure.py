"""A tiny student that is unsure: its most likely answers are right, of those that it draws half."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.recipes.kit import Learner, learn
from tests.recipes.tasks import chain, last


def unsure(folder: Path, rows: Sequence[Mapping[str, str]], seed: int) -> Learner:
    """Trained on eight chains of each sum, of which every second ends in a digit that was drawn."""
    rng = random.Random(f"unsure/{seed}")
    taught = []
    for row in [row for row in rows for _ in range(8)]:
        whole = chain(row["prompt"])
        if rng.random() < 0.5:
            before = whole.partition(" so ")[0][:-1]
            digit = rng.randrange(10)
            whole = f"{before}{digit} so {digit}"
        taught.append({"prompt": row["prompt"], "answer": whole})
    return learn(folder, taught, seed, steps=500, width=64)


def drawn(learner: Learner, rows: Sequence[Mapping[str, str]], seed: int = 0) -> float:
    """Share of questions to which one answer that is drawn is right (pass@1)."""
    said = learner.answers([row["prompt"] for row in rows], temperature=1.0, seed=seed)
    pairs = zip(said, rows, strict=True)
    return sum(last(answer) == row["reference"] for answer, row in pairs) / len(rows)
