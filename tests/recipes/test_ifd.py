"""IFD: a student that has seen a little tells what is still worth learning, and what is a mismatch.

What the measure cannot do shows here too. Half of what the student cannot do at all yet is above 1
as well and falls with the mismatches; and wrong answers that are merely improbable would be taken:
the pool has mismatches, and no subtle mistakes.
"""

import json
import random

import pytest

from kd_lightning.curate.vectors import TfIdf
from kd_lightning.teachers.student import Student
from tests.recipes import tasks
from tests.recipes.kit import learn, recipe


def pool(seed: int, count: int) -> list[dict[str, str]]:
    """Of ten rows eight copy a word, one reverses it, one has the answer of another row."""
    rng = random.Random(f"pool/{seed}")
    kinds = ["copy"] * 8 + ["reverse", "mismatch"]
    rows, others = [], tasks.words(count, seed + 1000, 4, 5)
    for i, row in enumerate(tasks.words(count, seed, 4, 5)):
        kind, word = kinds[i % 10], row["prompt"]
        verb = rng.choice(["copy", "reverse"]) if kind == "mismatch" else kind
        answer = {"copy": word, "reverse": word[::-1], "mismatch": others[i]["prompt"]}[kind]
        rows.append({"prompt": f"{verb} {word}", "answer": answer, "kind": kind})
    rng.shuffle(rows)
    return rows


def experienced(folder, seed, rows):
    """The student after a brief look at a part of the pool (ifd_brief.yaml)."""

    def change(run):
        run.seed = seed
        run.steps[-1].k, run.steps[-1].vectors = 200, TfIdf(2048)

    anyone = Student("none", licence="MIT")
    brief = recipe("ifd_brief", folder / "brief", {"embedder": anyone}, rows, change)
    return learn(folder / "student", brief, seed, 300)


def made(folder, seed, rows, learner, lowest=False):
    def change(run):
        run.seed = seed
        run.steps[1].alone = "|"  # a text of this tokenizer begins with no sign of its own
        run.steps[3].lowest = lowest

    student = Student.live(learner.model, licence="MIT")
    return recipe("ifd", folder, {"student": student}, rows, change)


def kinds(records) -> dict[str, float]:
    found = [r["kind"] for r in records]
    return {kind: found.count(kind) / len(found) for kind in ("copy", "reverse", "mismatch")}


def test_mismatches_fall_and_what_is_hard_is_taken(tmp_path):
    rows = pool(0, 1500)
    learner = experienced(tmp_path, 0, rows)
    records = made(tmp_path / "high", 0, rows, learner)
    low = made(tmp_path / "low", 0, rows, learner, lowest=True)
    lines = (tmp_path / "high/set/steps/02-ifd/records.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines]
    over = [r["kind"] for r in measured if r["ifd"] > 1]
    assert over.count("mismatch") > 0.7 * 150 and over.count("copy") < 0.02 * 1200
    assert all(r["ifd"] <= 1 for r in records)
    assert kinds(records)["reverse"] > 0.3, "a tenth of the pool"
    assert kinds(low)["reverse"] < 0.05, "the control takes what is known"


def arms(folder, seed) -> tuple[float, float, float]:
    """Reversed words by students of the selected tenth, of as many drawn, of the lowest tenth."""
    rows = pool(seed, 6000)
    pairs = [(f"reverse {r['prompt']}", r["reference"]) for r in tasks.words(150, 99, 4, 5)]
    learner = experienced(folder, seed, rows)
    high = made(folder / "high", seed, rows, learner)
    low = made(folder / "low", seed, rows, learner, lowest=True)
    drawn = random.Random(seed).sample(rows, len(high))
    return tuple(
        learn(folder / f"s{i}", some, seed, 400).score(pairs)
        for i, some in enumerate((high, drawn, low))
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_of_the_selected_does_what_was_hard(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    high, drawn, low = zip(*told, strict=True)
    print(f"selected {high}, drawn {drawn}, lowest {low}")
    assert min(high) > max(*drawn, *low) + 0.1
