"""Distilling step-by-step: one set, read as two tasks; afterwards the label alone is asked for.

That rationales raise the accuracy of labels does not show reliably on a tiny model (sums of three
digits, a quarter of all: .155 with labels alone and .225 with both in one seed; the other way round
in sums with letters, .32 and .24). Tested instead: the student of both tasks answers with as few
tokens as the student of labels and explains rightly when it is asked to; the controls, labels alone
and rationales of other questions, cannot.
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

LEAF = yaml.safe_load(
    (ROOT / "configs/data/skill/label_and_rationale.yaml").read_text(encoding="utf-8")
)


def unshown(run):
    run.steps[0].shots = None


def elicited(folder, rows):
    teacher = Rule(lambda request: stepwise(chain(last(request))), name="teacher")
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
    elicited(tmp_path, [{"id": r["prompt"], "prompt": r["prompt"]} for r in sums(20, 0, 3)])
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
        before, _, after = chain(question).partition(" so ")
        assert (system, answer) == ("predict", after)
        assert seen["rationale", "train"][id] == ["explain", question, before]


def explains(student, held) -> float:
    """Share of the questions that it explains rightly when it is told to."""
    steps = [chain(row["prompt"]).partition(" so ")[0] for row in held]
    asked = [f"{SYSTEM['rationale']}|{row['prompt']}" for row in held]
    return student.score(list(zip(asked, steps, strict=True)))


def labels(student, held) -> tuple[float, int]:
    """Share of right labels when it is told to answer, and the longest answer in signs."""
    said = student.answers([f"{SYSTEM['label']}|{row['prompt']}" for row in held])
    right = [a == row["reference"] for a, row in zip(said, held, strict=True)]
    return sum(right) / len(held), max(map(len, said))


def arms(folder, seed) -> tuple[tuple[float, float, float], tuple[float, float], int]:
    """Explained by students of both tasks, labels, strange rationales; labels; the longest."""
    rows = sums(600, seed, 3)
    tasks = tasks_of(elicited(folder, [{"prompt": r["prompt"]} for r in rows[:400]]))
    others = [row["answer"] for row in tasks["rationale"]]
    random.Random(seed).shuffle(others)
    strange = [{**r, "answer": o} for r, o in zip(tasks["rationale"], others, strict=True)]
    both = learn_tasks(folder / "both", tasks, seed, steps=300)
    alone = learn_tasks(folder / "alone", {"label": tasks["label"]}, seed, steps=300)
    mixed = learn_tasks(folder / "mixed", {**tasks, "rationale": strange}, seed, steps=300)
    held = rows[400:]
    explained = explains(both, held), explains(alone, held), explains(mixed, held)
    right, longest = labels(both, held)
    return explained, (right, labels(alone, held)[0]), longest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_student_answers_at_once_and_explains_when_asked(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    explained, right, longest = zip(*told, strict=True)
    both, alone, strange = zip(*explained, strict=True)
    print(f"explains {both}, labels alone {alone}, strange rationales {strange}; labels {right}")
    assert set(longest) == {1}  # the label, and nothing before it
    assert min(both) > 0.9 and max(*alone, *strange) < 0.5
