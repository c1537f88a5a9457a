"""Selective Reflection-Tuning: the table of what is taken; a student tells spoilt from good.

That the measures are what their formulas say is shown in tests/curate/test_scores.py.
"""

import math
import random

import pytest

from kd_lightning.teachers.generator import Generator, Kind, Reply, TokenLogprobs
from kd_lightning.teachers.scripted import spoken
from kd_lightning.teachers.student import Student
from kd_lightning.types import Signal
from tests.recipes.kit import learn, recipe
from tests.recipes.preferences import ideal, points, poor, shown
from tests.recipes.speakers import Says, share
from tests.recipes.tasks import words


class Table(Generator):
    """A student whose difficulty of each task is written in it: `IFD.rIFD old answer` and so on."""

    offers = frozenset({Signal.LOGPROB})
    name = identity = "table"

    def replies(self, requests):
        for number, request in enumerate(requests):
            assert request.kind is Kind.SCORE
            yield [(number, Reply(scores=(self._score(request),)))]

    def _score(self, request):
        asked, text = spoken(request.prompt), request.texts[0]
        if not request.prompt.messages[-1].content:  # a text by itself
            return TokenLogprobs((text,), (0.0,))
        reverse = "Which instruction" in asked
        answer = asked.partition("\n\nWhich")[0] if reverse else text
        ratio = dict(part.split("=") for part in answer.split())["r" if reverse else "i"]
        return TokenLogprobs((text,), (-math.log(float(ratio)),))


def rewrites(prompt, rng):
    """The task's name says what the two revisions measure."""
    task, answer = shown(spoken(prompt))
    name = task.rstrip("+")
    after_task, after_answer = TABLE[name][1:3]
    if "review the task itself" in spoken(prompt):
        told = f"<task>{name}+</task><response>{after_task}</response>"
    else:
        told = f"<response>{after_answer}</response>"
    return f"<review>-</review>{told}"


TABLE = {
    # task: answers at first, behind the new task, behind the new answer; what becomes of it
    "both": ("i=.4 r=.6", "i=.5 r=.6", "i=.5 r=.5", ("both+", "i=.5 r=.5")),
    "task alone": ("i=.4 r=.6", "i=.5 r=.6", "i=.5 r=.7", ("task alone+", "i=.5 r=.6")),
    "answer alone": ("i=.4 r=.6", "i=.3 r=.6", "i=.4 r=.5", ("answer alone", "i=.4 r=.5")),
    "neither": ("i=.4 r=.6", "i=.3 r=.6", "i=.4 r=.7", None),
    "as good": ("i=.4 r=.6", "i=.4 r=.6", "i=.4 r=.6", None),
    "no longer of the task": ("i=.4 r=.6", "i=1.2 r=.6", "i=1.2 r=.5", None),
    "answer that fits nothing": ("i=.4 r=1.6", "i=.5 r=1.6", "i=.5 r=1.2", None),
    "just at one": ("i=.4 r=.6", "i=1 r=.6", "i=1 r=.5", None),
}


def test_the_four_branches_and_the_two_limits(tmp_path):
    rows = [{"prompt": name, "answer": row[0]} for name, row in TABLE.items()]
    both = {"teacher": Says(rewrites), "student": Table()}
    made = recipe("selective_reflection", tmp_path, both, rows)
    wanted = [row[3] for row in TABLE.values() if row[3]]
    assert [(record["prompt"], record["answer"]) for record in made] == wanted
    assert [(r["took_task"], r["took_answer"]) for r in made] == [
        (True, True), (True, False), (False, True)
    ]  # fmt: skip
    for record in made:
        written = dict(part.split("=") for part in record["answer"].split())
        assert record["ifd"] == pytest.approx(float(written["i"]))
        assert record["rifd"] == pytest.approx(float(written["r"]))


def spoils(prompt, rng):
    """A reviser that answers another task on 40 of 100, always the same ones."""
    task, _ = shown(spoken(prompt))
    first = "review the task itself" in spoken(prompt)
    new = task + task[0] if first and len(task) < 7 else task
    bad = share("spoils", task, first) < 0.4
    told = f"<task>{new}</task>" if first else ""
    return f"<review>-</review>{told}<response>{poor(new) if bad else ideal(new)}</response>"


def knower(folder, seed):
    """A student that knows a little of both directions: to answer, and to guess what was asked."""
    rows = []
    for row in words(800, 70 + seed):
        word = row["prompt"]
        rows += [
            {"prompt": word, "answer": ideal(word)},
            {"prompt": f"{ideal(word)}?", "answer": word},
            {"prompt": "", "answer": ideal(word)},
        ]
    return learn(folder, rows, seed, 500)


def short(run):
    for step in run.steps:
        if type(step).__name__ == "IFD":
            step.question, step.alone = "{answer}?", "|"


def mean(rows):
    return sum(points(row["prompt"], row["answer"]) for row in rows) / len(rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_students_choice_beats_all_and_as_many_drawn(tmp_path):
    """Rules that the answers satisfy, and a new student's after learning from them."""
    found = []
    for seed in range(3):
        rows = [
            {"prompt": row["prompt"], "answer": poor(row["prompt"])} for row in words(500, seed)
        ]
        student = Student.live(knower(tmp_path / f"base{seed}", seed).model)
        speakers = {"teacher": Says(spoils), "student": student}
        chosen = recipe("selective_reflection", tmp_path / f"a{seed}", speakers, rows, short)
        every = recipe("reflection_tuning", tmp_path / f"b{seed}", {"teacher": Says(spoils)}, rows)
        drawn = random.Random(seed).sample(every, len(chosen))
        held = [row["prompt"] for row in words(100, 90 + seed)]
        taught = []
        for name, told in (("chosen", chosen), ("drawn", drawn)):
            learner = learn(tmp_path / f"{name}{seed}", told, seed, 300)
            said = learner.answers(held)
            both = zip(held, said, strict=True)
            taught.append(mean([{"prompt": p, "answer": a} for p, a in both]))
        found.append((len(chosen), mean(chosen), mean(every), mean(drawn), *taught))
    print(found)
    assert min(row[1] for row in found) > max(max(row[2], row[3]) for row in found)
    assert min(row[4] for row in found) > max(row[5] for row in found)
