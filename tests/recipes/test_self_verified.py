"""Rejection by a verifier: systematic mistakes fall, though nobody knows the answers."""

from __future__ import annotations

import random
import re

import pytest

from kd_lightning.teachers.rules import Rule as Known
from kd_lightning.teachers.scripted import Scripted
from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe
from tests.recipes.tasks import words
from tests.recipes.tiny_speaker import last

STEPS = "From behind."


class Backwards(Known):
    """Reverses a word; the slip forgets its first letter."""

    def answer(self, prompt, rng):
        return f"{STEPS}\nAnswer: {prompt[::-1]}"

    def slip(self, prompt, rng):
        return f"{STEPS}\nAnswer: {prompt[:0:-1]}"


class Checks(Known):
    """Reverses the word again; the slip takes whatever it is shown for right."""

    def answer(self, prompt, rng):
        word = re.findall(r"^[a-h]+$", prompt, re.MULTILINE)[0]
        shown = re.findall(r"Answer: (\w+)", prompt)[-1]
        return f"So I looked.\nCorrect: {'yes' if word[::-1] == shown else 'no'}"

    def slip(self, prompt, rng):
        return "It looks good.\nCorrect: yes"


def student():
    return Scripted(Backwards(), error_rate=0.6, name="student")


def verifier(error_rate=0.1):
    return Scripted(Checks(), error_rate=error_rate, seed=1, name="verifier")


def asked(rows):
    """No answers: nobody knows them."""
    return [{"prompt": row["prompt"]} for row in rows]


def right(record):
    return taught(record) == record["prompt"][::-1]


def taught(record):
    """What the student learns: the answer without the reasoning, which is always the same."""
    return record["final"]


def test_wrong_answers_fall_and_an_undecided_verdict_is_asked_again(tmp_path):
    said = {"1+1+1": "2 3\nAnswer: 3", "2+2+2": "4 4\nAnswer: 4", "3+3+3": "9"}
    verdicts = iter(["Perhaps.", "Correct: yes", "Correct: no"])
    spoken = {}

    def judged(request):
        spoken[last(request)] = last(request)
        return next(verdicts)

    parts = {
        "student": Rule(lambda request: said[last(request)], name="student"),
        "verifier": Rule(judged, name="verifier"),
    }

    def once(run):
        run.steps[0].n = 1

    rows = [{"id": q, "prompt": q} for q in said]
    made = recipe("self_verified", tmp_path, parts, rows, once)
    assert all("Answer: " in text for text in spoken)  # the verifier sees the reasoning
    assert len(made) == 1 and made[0]["verdict"] == "yes" and "reference" not in made[0].values
    assert [entry["by"] for entry in made[0].lineage if "by" in entry] == ["student", "verifier"]


def test_what_is_kept_is_right_more_often_and_a_credulous_verifier_keeps_all(tmp_path):
    rows = words(300, 5)
    parts = {"student": student(), "verifier": verifier()}
    made = recipe("self_verified", tmp_path / "a", parts, asked(rows))
    share = sum(map(right, made)) / len(made)
    credulous = {"student": student(), "verifier": verifier(1.0)}
    every = recipe("self_verified", tmp_path / "b", credulous, asked(rows))
    assert len(every) == 300 and 0.3 < sum(map(right, every)) / 300 < 0.5
    assert share > 0.8 and len(made) > 100


def arms(folder, seed) -> tuple[float, float, float]:
    """Right answers of students of what was verified, of all answers, and of as many drawn."""
    rows = words(1800, seed, 5, 5)  # of one length: learned in as many steps by every seed
    held = [(row["prompt"], row["reference"]) for row in rows[1600:]]
    parts = {"student": student(), "verifier": verifier()}
    made = recipe("self_verified", folder / "made", parts, asked(rows[:1600]))
    credulous = {"student": student(), "verifier": verifier(1.0)}
    every = recipe("self_verified", folder / "every", credulous, asked(rows[:1600]))
    some = random.Random(seed).sample(every, len(made))
    scores = []
    for name, records in (("verified", made), ("unfiltered", every), ("drawn", some)):
        told = [{"prompt": r["prompt"], "answer": taught(r)} for r in records]
        learner = learn(folder / name, told, seed, steps=500, width=64)
        scores.append(learner.score(held))
    print(f"seed {seed}: {len(made)} verified, all, as many drawn: {scores}")
    return scores[0], scores[1], scores[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_students_of_verified_answers_beat_those_of_all_and_of_as_many(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    verified, unfiltered, drawn = zip(*told, strict=True)
    assert min(verified) > max(unfiltered) + 0.15 and min(verified) > max(drawn) + 0.15
