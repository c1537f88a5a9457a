"""Personalised distillation: the student's own failures are repaired, run, and learned twice.

The second step at inference (repair after an error) is not measured here: reading error texts is
beyond students of this size.
"""

import json
import random
import re

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers.scripted import spoken
from kd_lightning.teachers.student import Student
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share

FORMS = {"a": "x*{0}+{1}", "b": "x*{1}-{0}", "c": "{0}-x*{1}", "d": "{1}+x-{0}"}
"""What the name of a task means: `a37` is a program for x*3+7."""


def program(task):
    return "f=lambda x:" + FORMS[task[0]].format(task[1], task[2])


def row(task):
    """A task with two tests, from the formula and not from the program."""
    n, m = int(task[1]), int(task[2])
    said = {"a": lambda x: x * n + m, "b": lambda x: x * m - n, "c": lambda x: n - x * m}
    said["d"] = lambda x: m + x - n
    tests = [f"assert f({x})=={said[task[0]](x)}" for x in (2, 7)]
    return {"prompt": task, "tests": tests}


def tasks(count, seed, forms="abcd"):
    """Tasks of some forms, all different."""
    every = [f + str(n) + str(m) for f in forms for n in range(1, 10) for m in range(1, 10)]
    return random.Random(f"tasks/{seed}").sample(every, count)


def teacher(prompt, rng):
    """Repairs; on 20 of 100 tasks it puts the numbers in each other's place."""
    text = spoken(prompt)
    task = re.search(r"Task:\n(\w+)", text)[1]
    assert re.search(r"Attempt:\nf=.+\n\nWhat happened when it was run:\n.*Error", text, re.DOTALL)
    if share("repairs", task) < 0.2:
        task = task[0] + task[2] + task[1]
    return f"```python\n{program(task)}\n```"


def tries(prompt, rng):
    """Fails on the tasks of form d: it takes them for another, or writes what is no program."""
    task = spoken(prompt)
    if task[0] != "d":
        return program(task)
    return "f=lambda x:x+" if share("broken", task) < 0.3 else program("a" + task[1:])


def repaired(folder, student, rows, **more):
    speakers = {"student": student, "teacher": Says(teacher)}
    return recipe("personalised_distillation", folder, speakers, rows, **more)


def test_only_failures_are_repaired_and_only_repairs_that_pass_are_learned(tmp_path):
    asked = tasks(12, 0, "ab") + tasks(24, 0, "d")
    made = repaired(tmp_path, Says(tries), [row(task) for task in asked])
    failed = {task for task in asked if task[0] == "d" and program("a" + task[1:]) != program(task)}
    wrong = {t for t in failed if share("repairs", t) < 0.2 and t[1] != t[2]}
    assert wrong
    plain = [r for r in made if r.id.endswith("/0")]
    assert {r["prompt"] for r in plain} == failed - wrong
    for record in plain:
        assert record["answer"] == f"```python\n{program(record['prompt'])}\n```"
    second = [r for r in made if r.id.endswith("/1")]
    assert len(second) == len(plain)
    for one, two in zip(plain, second, strict=True):
        assert two["answer"] == one["answer"]
        assert two["prompt"].startswith(one["prompt"] + "\n\nAttempt:\nf=lambda x:")
        assert one["errors"].strip() and one["errors"] in two["prompt"]
    fallen = {}
    for path in sorted((tmp_path / "set/steps").glob("*/dropped.jsonl")):
        for line in path.read_text().splitlines():
            told = json.loads(line)
            fallen.setdefault(told["reason"], set()).add(told["prompt"])
    assert fallen == {"passed above 0": set(asked) - failed, "tests failed": wrong}
    assert {"SyntaxError", "AssertionError"} <= {
        name for r in plain for name in re.findall(r"\w+Error", r["errors"])
    }


def test_programs_are_not_run_unasked(tmp_path):
    with pytest.raises(KDError, match="allow_code=true"):
        repaired(tmp_path, Says(tries), [row("a11")], allow_code=False)


def passed(learner, held):
    """Share of held-out tasks of the form that was failed: the program as it must be."""
    return learner.score([(task, program(task)) for task in held])


def unfenced(records):
    """Programs without the fence, of the first of the two forms: what a tiny student can learn."""
    made = []
    for record in records:
        if record.id.endswith("/0"):
            code = record["answer"].removeprefix("```python\n").removesuffix("\n```")
            made.append({"prompt": record["prompt"], "answer": code})
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_as_many_repairs_teach_more_than_a_teachers_own_programs(tmp_path):
    """The student writes three forms and fails the fourth. Control: as many of the teacher's own
    programs for tasks drawn from all four (standard distillation), from the same start."""
    found = []
    for seed in range(3):
        known = [{"prompt": t, "answer": program(t)} for t in tasks(200, seed, "abc")]
        start = learn(tmp_path / f"start{seed}", known, seed, 400)
        every = tasks(120, 50 + seed)
        seeds = [row(task) for task in every]
        own = unfenced(repaired(tmp_path / f"set{seed}", Student.live(start.model), seeds))
        drawn = random.Random(seed).sample(every, len(own))
        standard = [{"prompt": task, "answer": program(task)} for task in drawn]
        held = [t for t in tasks(324, 1) if t not in every]
        scores = [
            passed(learn(tmp_path / f"{i}{seed}", rows, seed, 60, start=start, rate=2e-3), held)
            for i, rows in enumerate((own, standard))
        ]
        found.append((len(own), passed(start, held), *scores))
        print(found)
    assert min(own for *_, own, _ in found) >= max(standard for *_, standard in found) + 0.05
