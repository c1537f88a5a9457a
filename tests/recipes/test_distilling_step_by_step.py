"""Distilling step-by-step: one set, read as two tasks; afterwards the label alone is asked for.

The student of both tasks answers with as few tokens as the student of labels, and more often
rightly, from a quarter of all questions: each letter is of a hidden kind, the label is a function
of both letters' kinds, and the rationale names them. With rationales of other questions, or with
labels alone, the kinds have to be guessed from labels. (On sums modulo 6 or 10, where students this
small know none of the labels, rationales helped none of them.)
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
from tests.recipes.tasks import chain, kinds, pairs, sums
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
    asked = [f"{SYSTEM['rationale']}|{row['prompt']}" for row in held]
    return student.score([(a, row["rationale"]) for a, row in zip(asked, held, strict=True)])


def labels(student, held) -> tuple[float, int]:
    """Share of right labels when it is told to answer, and the longest answer in signs."""
    said = student.answers([f"{SYSTEM['label']}|{row['prompt']}" for row in held])
    right = [a == row["reference"] for a, row in zip(said, held, strict=True)]
    return sum(right) / len(held), max(map(len, said))


def arms(folder, seed) -> dict[str, tuple[float, float, int]]:
    """What students explain, their labels, the longest: of both tasks and of the two controls."""
    rows = pairs(seed)
    quarter = len(rows) // 4
    told = {row["prompt"]: f"{row['rationale']} so {row['reference']}" for row in rows}
    teacher = Rule(lambda request: stepwise(told[last(request)]), name="teacher")
    asked = [{"prompt": row["prompt"]} for row in rows[:quarter]]
    tasks = tasks_of(
        recipe("distilling_step_by_step", folder, {"teacher": teacher}, asked, unshown)
    )
    others = [row["answer"] for row in tasks["rationale"]]
    random.Random(seed).shuffle(others)
    strange = [{**r, "answer": o} for r, o in zip(tasks["rationale"], others, strict=True)]
    ways = {
        "both": tasks,
        "labels": {"label": tasks["label"]},
        "strange": {**tasks, "rationale": strange},
    }
    students = {
        name: learn_tasks(folder / name, parts, seed, steps=400, rate=2e-3)
        for name, parts in ways.items()
    }
    held = rows[quarter:]
    return {name: (explains(s, held), *labels(s, held)) for name, s in students.items()}


def test_the_toys_labels_follow_from_its_rationales_alone():
    rows = pairs(0)
    found = kinds(0)
    assert len(rows) == len({row["prompt"] for row in rows}) == 380
    for row in rows:
        one, other = (found[letter] for letter in row["prompt"])
        assert row["rationale"] == f"{one}{other}"
        assert row["reference"] == "xyzw"[(one + other) % 4]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_labels_of_both_tasks_are_better_at_once_and_explained_when_asked(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    both, alone, strange = zip(*(found.values() for found in told), strict=True)
    print(f"explains, labels, longest: both {both}, labels alone {alone}, strange {strange}")
    assert all(longest == 1 for _, _, longest in both)  # the label, and nothing before it
    assert min(label for _, label, _ in both) > max(label for _, label, _ in [*alone, *strange])
    gains = [
        b - max(a, s) for (_, b, _), (_, a, _), (_, s, _) in zip(both, alone, strange, strict=True)
    ]
    assert sum(gains) / len(gains) > 0.2
    assert min(found for found, _, _ in both) > 0.9
    assert max(found for found, _, _ in [*alone, *strange]) < 0.5
