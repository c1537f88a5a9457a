"""ReST: thresholds that rise over one Grow step; ReST-EM: rounds of sampling and verifying."""

from __future__ import annotations

import random
import re
from statistics import fmean

import pytest

from kd_lightning.curate.select import Threshold
from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe, stored
from tests.recipes.tiny_speaker import last
from tests.recipes.unsure import drawn, speaking, tasks, taught, unsure


def test_the_threshold_rises_and_what_is_kept_shrinks_and_improves(tmp_path):
    rng = random.Random(0)
    student = Rule(
        lambda request: [f"answer {rng.randrange(101)}" for _ in range(request.n)], name="student"
    )
    reward = Rule(lambda request: re.findall(r"answer (\d+)", last(request))[-1], name="reward")
    rows = [{"prompt": f"q{i}"} for i in range(20)]
    grown = recipe("rest", tmp_path / "grow", {"student": student, "reward": reward}, rows)
    assert len(grown) == 20 * 32 and len(student.asked) == 20 and len(reward.asked) == 20 * 32
    assert all(record["answer"] == f"answer {record['score']}" for record in grown)
    kept, before = [], grown
    for least in (70, 80, 90):

        def change(run, least=least):
            run.steps = [Threshold(least=least)]

        folder = tmp_path / str(least)
        seeds = [record.as_row() for record in before]
        made = recipe("rest_improve", folder, {}, seeds, change if least != 70 else None)
        assert {r.id for r in made} < {r.id for r in before}
        assert min(record["score"] for record in made) >= least
        kept.append(fmean(record["score"] for record in made))
        before = made
    assert kept == sorted(kept) and kept[0] > fmean(r["score"] for r in grown) + 20
    assert stored(tmp_path / "90" / "set") == before


def test_an_answer_that_the_reward_cannot_judge_falls(tmp_path):
    student = Rule(lambda request: ["a", "b"] * 16, name="student")
    reward = Rule(lambda request: "fine" if "\nb" in last(request) else "50", name="reward")
    generators = {"student": student, "reward": reward}
    made = recipe("rest", tmp_path, generators, [{"prompt": "q"}])
    assert {record["answer"] for record in made} == {"a"} and len(made) == 16


def test_right_and_different_solutions_are_kept_ten_at_most(tmp_path):
    said = {
        "many": [f"way {i % 16}\nAnswer: {7 if i % 2 else 6}" for i in range(32)],
        "most": [f"way {i}\nAnswer: 7" for i in range(32)],
        "none": ["way\nAnswer: 6"] * 32,
    }
    student = Rule(lambda request: said[last(request)], name="student")
    rows = [{"id": q, "prompt": q, "reference": "7"} for q in said]
    made = recipe("rest_em", tmp_path, {"student": student}, rows)
    kept = {q: [r["answer"] for r in made if r["prompt"] == q] for q in said}
    assert kept["many"] == [f"way {i}\nAnswer: 7" for i in range(1, 16, 2)]
    assert len(kept["most"]) == 10 and not kept["none"]


def fewer(run):
    run.steps[0].n, run.steps[0].most = 8, 4


@pytest.mark.slow
def test_rounds_raise_pass_at_1_and_unverified_samples_do_not(tmp_path):
    begin, first, second, unverified = [], [], [], []
    for seed in range(3):
        folder, (known, questions, held) = tmp_path / str(seed), tasks(seed)
        base = unsure(folder / "base", known, seed)
        begin.append(drawn(base, held))
        how = {"steps": 80, "width": 64, "rate": 1e-3, "start": base}
        student = base
        for number, scores in enumerate((first, second)):
            generators = {"student": speaking(student)}
            made = recipe("rest_em", folder / str(number), generators, questions, fewer)
            kept = [{"prompt": r["prompt"], "answer": taught(r["answer"])} for r in made]
            assert len(kept) >= 0.9 * len(questions)
            student = learn(folder / f"{number}-student", kept, seed, **how)
            scores.append(drawn(student, held))
        prompts = [row["prompt"] for row in questions for _ in range(4)]
        said = base.answers(prompts, temperature=0.7, seed=seed)
        some = [{"prompt": p, "answer": a} for p, a in zip(prompts, said, strict=True)]
        other = learn(folder / "all", random.Random(seed).sample(some, len(kept)), seed, **how)
        unverified.append(drawn(other, held))
        print(
            f"seed {seed}: base {begin[-1]:.3f}, rounds {first[-1]:.3f} {second[-1]:.3f}, "
            f"unverified {unverified[-1]:.3f}"
        )
    assert max(begin) < 0.75
    assert min(first) > max(begin) + 0.1 and min(first) > max(unverified) + 0.05
    assert all(b > a - 0.02 for a, b in zip(first, second, strict=True))
