"""Lion: what the student does worse than the teacher is found, and more is asked of that."""

import json

import pytest

from kd_lightning.knowledge.records import Record
from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted
from kd_lightning.teachers.student import Student
from tests.recipes import tasks
from tests.recipes.kit import learn, recipe

HARD, EASY = "reverse", "copy"
LENGTH = 5
"""Of all words: to reverse words of several lengths, a third of the seeds learn far more slowly."""


class Master(Rule):
    """Answers, compares and invents; whoever slips likes the second answer two points more."""

    def answer(self, prompt, rng):
        return self.said(prompt, rng, 0)

    def slip(self, prompt, rng):
        return self.said(prompt, rng, 2)

    def said(self, prompt, rng, more):
        if "Answer of the first" in prompt:
            task, first, second = parts(prompt)
            a, b = (8 if told == solved(task) else 3 for told in (first, second))
            return f"first: {a}\nsecond: {min(10, b + more)}"
        if "Invent a new task" in prompt:
            verb = prompt.split("Task:\n")[1].split()[0]
            word = "".join(rng.choice("abcdefgh") for _ in range(LENGTH))
            return f"<task>{verb} {word}</task>"
        return solved(prompt)


def parts(prompt):
    told = prompt.split("Task:\n")[1]
    task, _, told = told.partition("\n\nAnswer of the first:\n")
    first, _, told = told.partition("\n\nAnswer of the second:\n")
    return task, first.strip(), told.split("\n")[0].strip()


def solved(task: str) -> str:
    verb, word = task.split()
    return word[::-1] if verb == HARD else word


def pool(seed: int, count: int) -> list[dict[str, str]]:
    """One task in ten is of the hard kind."""
    rows = [r["prompt"] for r in tasks.words(count, seed, LENGTH, LENGTH)]
    return [{"prompt": f"{EASY if i % 10 else HARD} {word}"} for i, word in enumerate(rows)]


def taught(folder, seed, rows):
    """lion_teach.yaml."""
    teacher = Scripted(Master(), error_rate=0.1, licence="MIT")
    told = [r.as_row() if isinstance(r, Record) else r for r in rows]
    plain = [{k: row[k] for k in ("id", "prompt") if k in row} for row in told]
    return recipe("lion_teach", folder, {"teacher": teacher}, plain)


def grown(folder, seed, rows, learner, k, shuffle=False):
    """lion_grow.yaml; `shuffle`: new tasks of instructions drawn at random, the control."""

    def change(run):
        run.seed = seed
        run.steps[0].sampling = run.steps[0].sampling.__class__(max_new_tokens=12)
        found = {type(step).__name__: step for step in run.steps}
        found["DedupRougeL"].threshold = 1.0  # tasks of two words: half of them is shared anyway
        found["Stratified"].k = k
        if shuffle:
            found["Bins"].bounds = [-100.0]
            found["Stratified"].k = 2 * k
            found["Bins"].names = ["hard", "hard as well"]

    teacher = Scripted(Master(), error_rate=0.1, licence="MIT")
    student = Student.live(learner.model, licence="MIT")
    given = [{k: r[k] for k in ("prompt", "answer")} for r in rows]
    generators = {"teacher": teacher, "student": student}
    return recipe("lion_grow", folder, generators, given, change)


def hard(records) -> float:
    return sum(r["prompt"].startswith(HARD) for r in records) / len(records)


def begun(folder, seed, count):
    """The first round: the pool's answers, and a student of them that still reverses badly."""
    rows = taught(folder / "teach", seed, pool(seed, count))
    return rows, learn(folder / "first", rows, seed, 250)


def test_the_referee_finds_what_is_hard_in_both_orders_and_half_of_the_new_is(tmp_path):
    rows, learner = begun(tmp_path, 0, 400)
    new = grown(tmp_path / "new", 0, rows, learner, 60)
    control = grown(tmp_path / "control", 0, rows, learner, 60, shuffle=True)
    judged = tmp_path / "new/set/steps/05-bins/records.jsonl"
    for line in judged.read_text().splitlines():
        r = json.loads(line)
        gap = r["forward"]["first"] - r["forward"]["second"]
        other = r["swapped"]["second"] - r["swapped"]["first"]
        assert r["gap"] == (gap + other) / 2
        assert (r["difficulty"] == "hard") == (r["gap"] >= 1)
    assert {r["prompt"] for r in new}.isdisjoint(r["prompt"] for r in rows)
    assert [r["difficulty"] for r in new].count("easy") == 60
    assert hard(new) > 2 * hard(control), (hard(new), hard(control))
    assert set(new[0].values) == {"prompt", "difficulty"}


def arms(folder, seed) -> tuple[float, float, float]:
    """Reversing before the second round, after it, and after one of random tasks; same budget."""
    pairs = [
        (f"{HARD} {r['prompt']}", r["reference"]) for r in tasks.words(150, 99, LENGTH, LENGTH)
    ]
    rows, learner = begun(folder, seed, 1000)
    scores = [learner.score(pairs)]
    for name, shuffle in (("lion", False), ("control", True)):
        new = grown(folder / name, seed, rows, learner, 150, shuffle)
        more = taught(folder / f"{name}-taught", seed, new)
        after = learn(folder / f"{name}-after", more, seed, 250, start=learner)
        scores.append(after.score(pairs))
    print(f"seed {seed}: before, Lion, random tasks: {scores}")
    return scores[0], scores[1], scores[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_hard_kind_is_learned_faster_than_by_random_tasks(tmp_path):
    told = [arms(tmp_path / str(seed), seed) for seed in range(3)]
    before, lion, control = zip(*told, strict=True)
    gains = [a - b for a, b in zip(lion, before, strict=True)]
    others = [a - b for a, b in zip(control, before, strict=True)]
    assert min(gains) > max(others) + 0.1, told
