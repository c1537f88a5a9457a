"""LMSI: what most of a student's own answers agree on teaches it, without any right answer.

A tiny student's most likely answer is nearly always right where its votes are, so what rises here
is the share of right answers among those that it draws, not that of its most likely ones. Its
mistakes are systematic: those that are drawn letter by letter average out in training by themselves
(after as many unfiltered answers .905 .905 .900 are right, after the vote .975 .970 .985).
"""

from __future__ import annotations

import random

import pytest

from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe
from tests.recipes.tasks import words
from tests.recipes.tiny_speaker import last
from tests.recipes.unsure import drawn, speaking, taught, torn

VOTES = 32  # as in the recipe


def plain(run):
    run.steps[0].shots = None


def asked(rows):
    return [{"prompt": row["prompt"]} for row in rows]


def test_all_reasoning_that_agrees_with_the_majority_is_kept(tmp_path):
    said = {
        "most": ["a\nAnswer: 7"] * 12 + ["b\nAnswer: 7."] * 8 + ["c\nAnswer: 5"] * 12,
        "scattered": [f"x{i}\nAnswer: {i}" for i in range(32)],
        "formless": ["7"] * 32,
        "half": ["no idea"] * 20 + ["d\nAnswer: 3"] * 12,
    }
    student = Rule(lambda request: said[last(request)], name="student")
    rows = [{"id": q, "prompt": q} for q in said]
    made = recipe("lmsi", tmp_path, {"student": student}, rows, plain)
    by = {q: [r for r in made if r["prompt"] == q] for q in said}
    assert {q: len(found) for q, found in by.items()} == {
        "most": 20, "scattered": 0, "formless": 0, "half": 12,
    }  # fmt: skip
    assert {r["answer"] for r in by["most"]} == {"a\nAnswer: 7", "b\nAnswer: 7."}
    assert {r["rationale"] for r in by["most"]} == {"a", "b"}
    assert by["most"][0]["confidence"] == 20 / 32
    assert all(request.n == 32 and request.sampling.temperature == 0.7 for request in student.asked)
    assert not any("reference" in r.values for r in made)


def arms(folder, seed) -> tuple[float, float, float]:
    """Right answers drawn from the student, after the vote, and after as many without a vote."""
    rows = words(6900, seed, 5, 5)
    questions, held = rows[6000:6400], rows[6400:]
    start = torn(folder / "start", rows[:6000], seed)
    made = recipe("lmsi", folder / "made", {"student": speaking(start)}, asked(questions), plain)
    kept = [{"prompt": r["prompt"], "answer": taught(r["answer"])} for r in made]
    prompts = [row["prompt"] for row in questions for _ in range(VOTES)]
    said = start.answers(prompts, temperature=0.7, seed=seed)
    every = [{"prompt": p, "answer": a} for p, a in zip(prompts, said, strict=True)]
    some = random.Random(seed).sample(every, min(len(kept), len(every)))
    scores = [drawn(start, held)]
    for name, told in (("voted", kept), ("unfiltered", some)):
        learner = learn(folder / name, told, seed, 150, width=64, rate=1e-3, start=start)
        scores.append(drawn(learner, held))
    print(f"seed {seed}: start, {len(kept)} voted, as many unfiltered: {scores}")
    return scores[0], scores[1], scores[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_vote_raises_what_a_student_draws_and_its_draws_alone_do_not(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    begin, voted, unfiltered = zip(*told, strict=True)
    assert max(begin) < 0.75
    assert min(voted) > max(unfiltered) + 0.1 and min(voted) > max(begin) + 0.15
