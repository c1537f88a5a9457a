"""Orca 2: the strategy that the teacher was given is erased, and the student chooses one itself."""

from __future__ import annotations

import random

import pytest

from kd_lightning.data.skills.instruction_following import InstructionFollowing
from tests.elicit.kit import Rule
from tests.recipes.kit import learn, recipe
from tests.recipes.tasks import chain, last, sums

GENERIC = "help"
LIMIT = 14
"""Tokens that an answer may have: a chain of sums has room, a recited look-up has not."""


def table(seed):
    """What is looked up: forty keys, each with a digit."""
    rng = random.Random(f"table/{seed}")
    return {f"{letter}{digit}": str(rng.randrange(10)) for letter in "abcd" for digit in range(10)}


def seeds_of(count, seed):
    keys = table(seed)
    asked = [{**row, "task": "calculate"} for row in sums(count, seed)]
    rng = random.Random(seed)
    for _ in range(count):
        key = rng.choice(sorted(keys))
        asked.append({"prompt": key, "reference": keys[key], "task": "look_up"})
    return asked


class Teacher:
    """Does what the system prompt says: works a task out, or answers at once."""

    def __init__(self, seed):
        self.table = table(seed)

    def __call__(self, request):
        system, question = (message.content for message in request.prompt.messages)
        return self.said(question, "one step at a time" in system)

    def said(self, question, at_length):
        if question not in self.table:
            whole = chain(question)
            return whole if at_length else last(whole)
        value = self.table[question]
        return f"row {question[0]} and column {question[1]} so {value}" if at_length else value


def brief(run):
    erase = next(step for step in run.steps if type(step).__name__ == "Erase")
    erase.replacement = GENERIC


def test_the_teacher_is_told_a_strategy_and_the_student_is_not(tmp_path):
    kinds = ["calculate", "know", "judge", "read", "look_up", "sing"]
    rows = [{"prompt": f"about {kind}", "task": kind} for kind in kinds]
    teacher = Rule(lambda request: request.prompt.messages[0].content[:10], name="teacher")
    made = recipe("orca2", tmp_path, {"teacher": teacher}, rows)
    assert [record["task"] for record in made] == kinds[:5]  # no strategy for singing
    told = [request.prompt.messages[0].content for request in teacher.asked]
    assert len(set(told)) == 5
    data = InstructionFollowing(knowledge=str(tmp_path / "set"), validation_share=0.0)
    shown = [data.example(row) for row in data.placed("train")]
    (generic,) = {example.messages[0].content for example in shown}
    for record, example, strategy in zip(made, shown, told, strict=True):
        assert record["strategy"] == strategy
        assert record["answer"] == example.answer == strategy[:10]
        assert strategy not in str(example.prompt) and generic != strategy
        assert example.messages[0].role == "system" and record["system"] == generic


def taught(student, held, seed):
    """Share that is right, and how often an answer has a chain, by kind of task."""
    right, chains = [], {"calculate": [], "look_up": []}
    said = student.answers([f"{GENERIC}|{row['prompt']}" for row in held], tokens=LIMIT)
    for answer, row in zip(said, held, strict=True):
        right.append(last(answer) == row["reference"])
        chains[row["task"]].append(" " in answer)
    return sum(right) / len(right), {k: sum(v) / len(v) for k, v in chains.items()}


@pytest.mark.slow
def test_the_student_reasons_where_it_helps_and_answers_at_once_where_not(tmp_path):
    chosen, always, never = [], [], []
    for seed in range(3):
        folder, rows = tmp_path / str(seed), seeds_of(700, seed)
        held = [row for row in seeds_of(900, seed) if row["task"] == "calculate"][700:800]
        held += [row for row in rows if row["task"] == "look_up"][:100]
        made = recipe("orca2", folder, {"teacher": Rule(Teacher(seed))}, rows, brief)
        student = learn(folder / "chosen", made, seed, steps=450, width=64)
        score, chains = taught(student, held, seed)
        assert chains["calculate"] >= 0.9 and chains["look_up"] <= 0.1
        chosen.append(score)
        for at_length, scores in ((True, always), (False, never)):
            one_way = [
                {**record.values, "answer": Teacher(seed).said(record["prompt"], at_length)}
                for record in made
            ]
            other = learn(folder / str(at_length), one_way, seed, steps=450, width=64)
            scores.append(taught(other, held, seed)[0])
        print(
            f"seed {seed}: chosen {score:.3f} {chains}, always at length {always[-1]:.3f}, "
            f"never {never[-1]:.3f}"
        )
    assert min(chosen) > 0.9
    assert min(chosen) >= max(always) + 0.15 and min(chosen) >= max(never) + 0.15
