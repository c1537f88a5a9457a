"""Reflection-Tuning: what is rewritten is better, what cannot be read falls, students gain."""

import json

import pytest

from kd_lightning.teachers.scripted import spoken
from tests.recipes.kit import learn, recipe
from tests.recipes.preferences import corpus, ideal, points, shown
from tests.recipes.speakers import Says, share
from tests.recipes.tasks import words

MALFORMED = {
    "no closing": lambda good: good.replace("</response>", ""),
    "twice": lambda good: good + "\n<response>or this</response>",
    "nothing in it": lambda good: good.partition("<response>")[0] + "<response> </response>",
    "no tags": lambda good: "I would write it differently.",
}


def flaw(*of):
    drawn = share("flaw", *of)
    return list(MALFORMED)[int(drawn * 40)] if drawn < 0.1 else ""


def reviser(prompt, rng):
    """Writes a harder task and a good answer; forgets the full stop on 15 of 100."""
    text = spoken(prompt)
    task, answer = shown(text)
    stage = "task" if "review the task itself" in text else "response"
    new = task + task[0] if stage == "task" else task
    better = ideal(new)[: -1 if share("forgets", new) < 0.15 else None]
    parts = {"review": "It may be better.", "task": new, "response": better}
    told = "\n".join(
        f"<{tag}>{part}</{tag}>" for tag, part in parts.items() if tag != "task" or stage == "task"
    )
    return MALFORMED[flaw(stage, task)](told) if flaw(stage, task) else told


def recycled(folder, rows):
    return recipe("reflection_tuning", folder, {"teacher": Says(reviser)}, rows)


def test_each_good_rewriting_is_read_and_no_malformed_one(tmp_path):
    rows = corpus([row["prompt"] for row in words(200, 0)])
    too_long = {"prompt": "long", "answer": "word " * 2000}
    made = recycled(tmp_path, [*rows, too_long])
    wanted = []
    for row in rows:
        new = row["prompt"] + row["prompt"][0]
        if not flaw("task", row["prompt"]) and not flaw("response", new):
            wanted.append(new)
    assert [record["prompt"] for record in made] == wanted
    assert {record.lineage[-1]["step"] for record in made} == {"04-keep"}
    reasons = {}
    for path in sorted((tmp_path / "set/steps").glob("*reflect*/dropped.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            stage = "task" if "instruction" in path.parent.name else "response"
            reasons.setdefault(row["reason"], set()).add(flaw(stage, row["prompt"]))
    assert reasons == {
        "malformed: <response> not closed": {"no closing"},
        "malformed: <response> more than once": {"twice"},
        "malformed: <response> is empty": {"nothing in it"},
        "malformed: <review> missing": {"no tags"},
    }


def test_the_answers_are_better_than_those_that_came_in(tmp_path):
    rows = corpus([row["prompt"] for row in words(200, 0)])
    before = sum(points(row["prompt"], row["answer"]) for row in rows) / len(rows)
    made = recycled(tmp_path, rows)
    after = sum(points(record["prompt"], record["answer"]) for record in made) / len(made)
    assert before < 2.2 and after > 3.7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_students_of_rewritten_answers_satisfy_a_rule_more(tmp_path):
    found = []
    for seed in range(3):
        rows = corpus([row["prompt"] for row in words(1000, seed)])
        made = recycled(tmp_path / f"{seed}", rows)
        held = [row["prompt"] for row in words(100, 90 + seed)]
        of = []
        for name, told in (("new", made), ("old", rows[: len(made)])):
            learner = learn(tmp_path / f"{name}{seed}", told, seed, 300)
            said = learner.answers(held)
            of.append(sum(points(p, a) for p, a in zip(held, said, strict=True)) / len(held))
        found.append(of)
    print(found)
    assert min(new for new, _ in found) >= max(old for _, old in found) + 1
