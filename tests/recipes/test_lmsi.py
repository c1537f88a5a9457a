"""LMSI: what most of a student's own answers agree on teaches it, without any right answer.

A tiny student's most likely answer is nearly always right where its votes are, so what rises here
is the share of right answers among those that it draws, not that of its most likely ones.
"""

from __future__ import annotations

import random

import pytest

from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe
from tests.recipes.tiny_speaker import last
from tests.recipes.unsure import drawn, speaking, tasks, taught, unsure


def fewer(run):
    ask = run.steps[0]
    ask.n, ask.shots = 8, None


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


@pytest.mark.slow
def test_the_vote_raises_what_a_student_draws_and_its_draws_alone_do_not(tmp_path):
    voted, unfiltered, begin = [], [], []
    for seed in range(3):
        folder, (known, questions, held) = tmp_path / str(seed), tasks(seed)
        start = unsure(folder / "start", known, seed)
        student = speaking(start)
        made = recipe("lmsi", folder / "made", {"student": student}, asked(questions), fewer)
        kept = [{"prompt": r["prompt"], "answer": taught(r["answer"])} for r in made]
        prompts = [row["prompt"] for row in questions for _ in range(8)]
        said = start.answers(prompts, temperature=0.7, seed=seed)
        all_said = [{"prompt": p, "answer": a} for p, a in zip(prompts, said, strict=True)]
        some = random.Random(seed).sample(all_said, min(len(kept), len(all_said)))
        how = {"steps": 80, "width": 64, "rate": 1e-3, "start": start}
        begin.append(drawn(start, held))
        voted.append(drawn(learn(folder / "voted", kept, seed, **how), held))
        unfiltered.append(drawn(learn(folder / "all", some, seed, **how), held))
        print(
            f"seed {seed}: start {begin[-1]:.3f}, voted {voted[-1]:.3f} ({len(kept)}), "
            f"unfiltered {unfiltered[-1]:.3f}"
        )
    assert max(begin) < 0.75
    assert min(voted) > max(unfiltered) + 0.1 and min(voted) > max(begin) + 0.15
