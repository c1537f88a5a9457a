"""Personalised distillation: the student's own failures are repaired, run, and learned twice.

That a student of these repairs does better than one of as many programs of the teacher's own does
not show on students this small: fine-tuned on failures alone they forget what they could do (share
of held-out tasks .77 before; .23 after 34 repairs, .82 after 34 of the teacher's programs). Nor is
the second step at inference measured: they cannot read error texts. What is shown is what the set
holds.
"""

import json
import random
import re

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers.scripted import spoken
from tests.recipes.kit import recipe
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
