"""Distilling step-by-step: one set, read as two tasks; afterwards the label alone is asked for.

Shown: the student of both tasks answers with as few tokens as the student of labels, and explains
rightly when it is asked to; the controls, labels alone and rationales of other questions, cannot.
Not shown: that its labels are better than those of the student of labels (.14 .18 .16 against .15
.10 .07 on three seeds: all near chance), and that it explains nine of ten questions on every seed.
"""

from __future__ import annotations

import random

import pytest
import yaml

from kd_lightning.data.mixture import Mixture
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from tests.conftest import ROOT
from tests.elicit.kit import Rule
from tests.recipes.kit import recipe
from tests.recipes.tasks import chain, sums
from tests.recipes.tiny_speaker import last, stepwise
from tests.recipes.two_tasks import SYSTEM, WEIGHTS, learn_tasks

BASE = 6
"""Of the sums, whose quarter is learned from: 324 of 1,296."""
LEAF = yaml.safe_load(
    (ROOT / "configs/data/skill/label_and_rationale.yaml").read_text(encoding="utf-8")
)


def unshown(run):
    run.steps[0].shots = None


def elicited(folder, rows):
    teacher = Rule(lambda request: stepwise(chain(last(request), BASE)), name="teacher")
    return recipe("distilling_step_by_step", folder, {"teacher": teacher}, rows, unshown)


def tasks_of(made):
    return {
        "label": [{"prompt": r["prompt"], "answer": r["answer"]} for r in made],
        "rationale": [{"prompt": r["prompt"], "answer": r["rationale"]} for r in made],
    }


def test_labels_and_rationales_come_apart_and_what_is_neither_falls(tmp_path):
    said = {"1+1?": "1 and 1\nAnswer: 2", "2+2?": "It is 4", "3+3?": "Answer: 6"}
    teacher = Rule(lambda request: said[last(request)], name="teacher")
    rows = [{"prompt": question} for question in said]
    made = recipe("distilling_step_by_step", tmp_path, {"teacher": teacher}, rows)
    assert [(r["prompt"], r["rationale"], r["answer"]) for r in made] == [("1+1?", "1 and 1", "2")]
    shown = [m.content for m in teacher.asked[0].prompt.messages if m.role == "assistant"]
    assert len(shown) == 4 and all("\nAnswer: " in text for text in shown)


def test_the_same_set_is_both_tasks_of_a_mixture(tmp_path):
    elicited(tmp_path, [{"id": r["prompt"], "prompt": r["prompt"]} for r in sums(20, 0, 3, BASE)])
    assert LEAF["class_path"].endswith(Mixture.__name__)
    parts = LEAF["init_args"]["parts"]
    assert set(parts) == set(WEIGHTS) == {"label", "rationale"}
    seen = {}
    for name, part in parts.items():
        settings = {**part["data"]["init_args"], "knowledge": str(tmp_path / "set")}
        data = InstructionFollowing(**settings)
        for split in ("train", "validation"):
            seen[name, split] = {
                e.id: [m.content for m in e.messages] for e in map(data.example, data.placed(split))
            }
    # what one task is measured on, the other has not learned
    assert seen["label", "train"].keys() == seen["rationale", "train"].keys()
    for id, (system, question, answer) in seen["label", "train"].items():
        before, _, after = chain(question, BASE).partition(" so ")
        assert (system, answer) == ("predict", after)
        assert seen["rationale", "train"][id] == ["explain", question, before]


def explains(student, held) -> float:
    """Share of the questions that it explains rightly when it is told to."""
    steps = [chain(row["prompt"], BASE).partition(" so ")[0] for row in held]
    asked = [f"{SYSTEM['rationale']}|{row['prompt']}" for row in held]
    return student.score(list(zip(asked, steps, strict=True)))


def labels(student, held) -> tuple[float, int]:
    """Share of right labels when it is told to answer, and the longest answer in signs."""
    said = student.answers([f"{SYSTEM['label']}|{row['prompt']}" for row in held])
    right = [a == row["reference"] for a, row in zip(said, held, strict=True)]
    return sum(right) / len(held), max(map(len, said))


def arms(folder, seed) -> dict[str, tuple[float, float, int]]:
    """What students explain, their labels, the longest: of both tasks and of the two controls."""
    rows = sums(524, seed, 4, BASE)
    tasks = tasks_of(elicited(folder, [{"prompt": r["prompt"]} for r in rows[:324]]))
    others = [row["answer"] for row in tasks["rationale"]]
    random.Random(seed).shuffle(others)
    strange = [{**r, "answer": o} for r, o in zip(tasks["rationale"], others, strict=True)]
    ways = {
        "both": tasks,
        "labels": {"label": tasks["label"]},
        "strange": {**tasks, "rationale": strange},
    }
    students = {
        name: learn_tasks(folder / name, parts, seed, steps=900, rate=2e-3)
        for name, parts in ways.items()
    }
    held = rows[324:]
    return {name: (explains(s, held), *labels(s, held)) for name, s in students.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xfail(
    raises=AssertionError,
    reason="explains 1.00 .70 1.00 on seeds 0, 1, 2 (controls at most .01): seed 1 is below .9",
)
def test_the_student_answers_at_once_and_explains_when_asked(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    both, alone, strange = zip(*(found.values() for found in told), strict=True)
    print(f"explains, labels, longest: both {both}, labels alone {alone}, strange {strange}")
    assert all(longest == 1 for _, _, longest in both)  # the label, and nothing before it
    assert min(found for found, _, _ in both) > 0.9
    assert max(found for found, _, _ in [*alone, *strange]) < 0.5
