"""SelFee: chains end where nothing is left to revise; students learn to revise themselves."""

import json
import random
import re

import pytest

from kd_lightning.teachers.scripted import spoken
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share
from tests.recipes.tasks import chain, sums

SHORT = (
    "{% for step in chain %}{% if not loop.first %} r {% endif %}{{ step.answer }}"
    " f {{ step.critique }} {{ 'ok' if step.verdict == 'keep' else 'no' }}{% endfor %}"
)
"""The chain of the recipe in as few signs as may be."""
BASE = 6
"""Of the sums: as many rules for one step as the tiny students learn from so few rows."""


def parts(question):
    """The partial sums, which are the reasons of every feedback; the last is the result."""
    return chain(question, BASE).partition(" so ")[0]


def right(question):
    return parts(question)[-1]


def first(question):
    """The first answer: on 40 of 100 one too many."""
    return str((int(right(question)) + (share("first", question) < 0.4)) % BASE)


def teacher(prompt, rng):
    text = spoken(prompt)
    if "Task:" not in text:
        return "no end" if text == "0+0" else first(text)
    question = re.search(r"Task:\n(.+)", text)[1]
    answer = re.search(r"Answer(?: so far)?:\n(.+)", text)[1]
    if "Examine this answer" in text:
        good = answer == right(question)
        return f"{parts(question)}\nVerdict: {'keep' if good else 'revise'}"
    return "no end" if question == "0+0" else right(question)


def chains(folder, rows, short=False):
    def shorter(run):
        run.steps[3].values = {"answer": SHORT}

    return recipe("selfee", folder, {"teacher": Says(teacher)}, rows, shorter if short else None)


def test_chains_stop_where_the_answer_stands(tmp_path):
    rows = sums(60, 0, 4, BASE)
    made = chains(tmp_path, [*rows, {"prompt": "0+0"}])
    assert [record["prompt"] for record in made] == [row["prompt"] for row in rows]
    lengths = {True: set(), False: set()}
    for record in made:
        question = record["prompt"]
        lengths[first(question) == right(question)].add(len(record["chain"]))
        assert record["chain"][-1]["answer"] == right(question)
        assert [step["verdict"] for step in record["chain"]][-1] == "keep"
    assert lengths == {True: {1}, False: {2}}
    fallen = (tmp_path / "set/steps/03-matches/dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in fallen] == ["still to be revised"]
    assert len(json.loads(fallen[0])["chain"]) == 4  # three revisions and a look at the last


def test_what_is_learned_is_the_whole_chain(tmp_path):
    made = {record["prompt"]: record for record in chains(tmp_path, sums(60, 0, 4, BASE))}
    question = next(q for q in made if first(q) != right(q))
    assert made[question]["answer"].strip() == (
        f"{first(question)}\n\nFeedback:\n{parts(question)}\nRevision is needed.\n\n"
        f"Revision:\n{right(question)}\n\nFeedback:\n{parts(question)}\nRevision is not needed."
    )


def shuffled(records, seed):
    """The same chains with the feedback of other questions."""
    rng = random.Random(seed)
    told = [step["critique"] for record in records for step in record["chain"]]
    rng.shuffle(told)
    left = iter(told)
    return [
        {
            "prompt": record["prompt"],
            "answer": re.sub(
                r"f .*? (ok|no)", lambda m: f"f {next(left)} {m[1]}", record["answer"]
            ),
        }
        for record in records
    ]


def measured(learner, held):
    """Share right at first, at the end, and of those right at first the share right at the end."""
    said = learner.answers([question for question, _ in held], 60)
    begin = [text[:1] == want for text, (_, want) in zip(said, held, strict=True)]
    ends = [text.split(" r ")[-1][:1] for text in said]
    last = [end == want for end, (_, want) in zip(ends, held, strict=True)]
    kept = [b for a, b in zip(begin, last, strict=True) if a]
    return sum(begin) / len(held), sum(last) / len(held), sum(kept) / max(1, len(kept))


def arms(folder, seed) -> list[tuple[float, float, float]]:
    """What is measured of students of the chains, and of the same with others' feedback."""
    made = chains(folder, sums(900, seed, 4, BASE), short=True)
    known = {record["prompt"] for record in made}
    new = [row for row in sums(300, 99, 4, BASE) if row["prompt"] not in known]
    held = [(row["prompt"], row["reference"]) for row in new]
    ways = {"own": made, "others": shuffled(made, seed)}
    return [
        measured(learn(folder / name, rows, seed, 1500, width=64, rate=2e-3), held)
        for name, rows in ways.items()
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_gains_by_revising_itself_and_not_with_others_feedback(tmp_path):
    """At least 10 points more than its first answer, and 90 of 100 right ones stay."""
    own, others = zip(*(arms(tmp_path / str(seed), seed) for seed in range(3)), strict=True)
    print(f"first, last, kept: own feedback {own}, others' feedback {others}")
    assert all(end >= begin + 0.1 and kept >= 0.9 for begin, end, kept in own)
    assert min(end for _, end, _ in own) > max(end for _, end, _ in others) + 0.1
