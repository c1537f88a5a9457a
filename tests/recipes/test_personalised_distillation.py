"""Personalised distillation: the student's own failures are repaired, run, and learned twice.

A tiny student forgets what it knew where it learns repairs alone, so what it has learned from is
mixed in, its mistakes included, and in the control as well. The control learns as many rows, all
right, of the teacher's own choice. Both can read errors before: what the mixture keeps alive.
"""

import json
import random
import re

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers.scripted import spoken
from tests.recipes import programs
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share
from tests.recipes.tiny_speaker import Speaking, last

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


def repairs(folder, learner, language, count):
    """personalised_distillation.yaml: what the student learns of its failures."""

    def patient(run):
        for step in run.steps[1], run.steps[4]:
            step.seconds = 60.0

    def mends(prompt, rng):
        name = re.search(r"Task:\n(\w+)", spoken(prompt))[1]
        wrong = share("repairs", name) < 0.2
        told = language.mistaken(name) if wrong else language.right(name)
        return f"```python\n{programs.HEAD}{told}\n```"

    student = Speaking(learner, last, lambda told: programs.HEAD + told)
    speakers = {"student": student, "teacher": Says(mends)}
    names = language.names("tasks", count)
    made = recipe("personalised_distillation", folder, speakers, map(language.task, names), patient)
    rows = []
    for r in made:
        name = r["prompt"].split()[0]
        assert r["answer"] == f"```python\n{programs.HEAD}{language.right(name)}\n```"
        attempt = r["attempt"].removeprefix(programs.HEAD)
        again = r["prompt"] != name  # the task with the attempt and its error
        asked = programs.repair(name, attempt, r["errors"]) if again else name
        rows.append({"prompt": asked, "answer": language.right(name)})
    return rows


def tried(learner, prompts):
    return learner.answers(prompts, 12, temperature=0.3)


def passing(language, names, said):
    return [text == language.right(name) for name, text in zip(names, said, strict=True)]


def twice(learner, language, names):
    """Shares that pass: at once, after a second look at the error, and at another task's error."""
    said = tried(learner, names)
    first = passing(language, names, said)
    failed = [(n, text) for n, text, good in zip(names, said, first, strict=True) if not good]
    told = [programs.errors(language.task(name), text) for name, text in failed]
    turn = len(told) // 2
    shares = [sum(first) / len(names)]
    for shown in (told, told[turn:] + told[:turn]):
        asked = [programs.repair(n, t, e) for (n, t), e in zip(failed, shown, strict=True)]
        mended = passing(language, [n for n, _ in failed], tried(learner, asked)) if asked else []
        shares.append((sum(first) + sum(mended)) / len(names))
    return shares


TASKS, STEPS, REPLAYED = 700, 120, 1.5  # rows of old for each new one


def arms(folder, seed):
    """Shares of `twice` of a student of its repairs, and of one of the teacher's programs."""
    language = programs.Language(seed)
    corpus, held = language.corpus(2500), language.names("held", 500)
    start = learn(folder / "start", corpus, seed, steps=500, width=64)
    new = repairs(folder / "made", start, language, TASKS)
    names = language.names("teacher", len(new))
    others = [{"prompt": name, "answer": language.right(name)} for name in names]
    old = random.Random(seed).sample(corpus, int(REPLAYED * len(new)))
    scores = [twice(start, language, held)]
    for name, rows in (("personal", new), ("standard", others)):
        learner = learn(folder / name, rows + old, seed, STEPS, width=64, rate=2e-3, start=start)
        scores.append(twice(learner, language, held))
    print(
        f"seed {seed}: at once, with its error, with another's: start {scores[0]}, "
        f"{len(new)} rows of repairs {scores[1]}, {len(new)} of the teacher's {scores[2]}"
    )
    return scores


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_repairs_of_its_failures_teach_more_than_as_many_programs_of_the_teacher(tmp_path):
    """By 5 of 100 tasks at least; a look at the error mends 3 more, at another task's none."""
    found = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    begin, personal, standard = zip(*found, strict=True)
    assert max(once for once, _, _ in begin) < 0.85
    assert min(once for once, _, _ in personal) > max(once for once, _, _ in standard) + 0.05
    assert min(again - once for once, again, _ in personal) > 0.03
    assert max(others - once for once, _, others in personal) < 0.01
