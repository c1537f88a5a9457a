"""RECOMP: the summary that helps the reader most, and none where none helps."""

import json
import math
import random
import re

import pytest

from kd_lightning.teachers.rules import Rule
from kd_lightning.teachers.scripted import Scripted, spoken
from kd_lightning.teachers.student import Student
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share
from tests.tiny import tokenizer

KEYS = "abcdefghijkl"
VALUES = "0123456789"


def rows(count, seed):
    """Eight documents such as k7 and a question about a key; in a third of the rows none has it."""
    rng = random.Random(f"recomp/{seed}")
    made = {}
    while len(made) < count:
        keys, values = rng.sample(KEYS, 9), rng.sample(VALUES, 9)
        told = [key + value for key, value in zip(keys[:8], values, strict=False)]
        lacks = len(made) % 3 == 0
        asked = keys[8] if lacks else rng.choice(keys[:8])
        found = true(told, asked) or asked + values[8]  # what no document says
        made["".join(told) + asked] = {"prompt": asked, "docs": told, "reference": found}
    return list(made.values())


def true(docs, asked):
    """The document that helps; '' where there is none."""
    return next((doc for doc in docs if doc[0] == asked), "")


def shown(prompt):
    text = spoken(prompt)
    docs = re.findall(r"Document \d+:\n(\w\w)", text)
    return docs, re.search(r"Question: (\w)", text)[1]


def summarises(prompt, rng):
    """Takes any document; on 60 of 100 questions never the one that helps (a systematic error)."""
    docs, asked = shown(prompt)
    good = true(docs, asked)
    others = [doc for doc in docs if doc != good]
    if good and others and share("misses", docs, asked) < 0.6 and rng.random() < 0.6:
        return rng.choice(others)
    return good if good and rng.random() < 0.7 else rng.choice(docs)


class Reader(Rule):
    """Believes what it is told about the key; guesses worse where it is told other things."""

    scores = True

    def answer(self, prompt, rng):
        return "?"

    def slip(self, prompt, rng):
        return "?"

    def logprob(self, prompt, text):
        *told, asked = prompt.split("\n\n")
        if told and told[0][0] == asked:
            return math.log(0.9 if told[0] == text else 0.01)
        return math.log(0.06 if told else 0.1)


def compressed(folder, seeds, reader, n=4):
    """The recipe's set; `n`: summaries drawn for each question."""

    def shorter(run):
        run.steps[0].n = n
        run.steps[6].values = {
            "question": "{{ prompt }}",
            "prompt": "{{ docs | join(' ') }} {{ prompt }}",
            "answer": "{{ summary }}",
        }

    both = {"teacher": Says(summarises), "reader": reader}
    return recipe("recomp", folder, both, seeds, shorter)


def test_the_summary_that_helps_is_kept_and_none_where_none_helps(tmp_path):
    seeds = rows(150, 0)
    made = compressed(tmp_path, seeds, Scripted(Reader(), name="reader"))
    assert len(made) == len(seeds)
    drawn = {}
    for line in (tmp_path / "set/steps/01-evidence/records.jsonl").read_text().splitlines():
        told = json.loads(line)
        drawn.setdefault("".join(told["docs"]) + told["prompt"], []).append(told["summary"])
    kinds = {"helps": 0, "missed": 0, "nothing": 0}
    for record, seed in zip(made, seeds, strict=True):
        good = true(seed["docs"], seed["prompt"])
        found = drawn["".join(seed["docs"]) + seed["prompt"]]
        assert len(found) == 4
        wanted = good if good in found else ""
        assert record["answer"] == wanted and record["better_without"] == (not wanted)
        assert record["prompt"] == f"{' '.join(seed['docs'])} {seed['prompt']}"
        kinds["nothing" if not good else "helps" if wanted else "missed"] += 1
    assert kinds["nothing"] == 50 and kinds["missed"] and kinds["helps"] > 70


# ------------------------------------------------------------------ what a compressor learns of it
def words():
    """A document is one word: read letter by letter, students this small are late to look up."""
    return tokenizer(tuple(key + value for key in KEYS for value in VALUES), r"\w\d")


def put(row):
    """A question as the compressor reads it."""
    return f"{' '.join(row['docs'])} {row['prompt']}"


def told(text, row):
    """A question as the reader reads it, behind what it is told."""
    return f"{text}\n\n{row['prompt']}" if text else row["prompt"]


def reader(folder, seed):
    """A tiny model that learned to answer by all documents, by the one that helps, and by none; one
    document that is about something else leads it astray, as it does larger ones."""
    known = []
    for number, row in enumerate(rows(6000, 900 + seed)):
        good, whole, answer = (
            true(row["docs"], row["prompt"]),
            " ".join(row["docs"]),
            row["reference"],
        )
        text = (
            (whole, good, whole, "", whole)[number % 5]
            if good
            else ("", row["docs"][0])[number % 2]
        )
        if text and not good:
            answer = row["prompt"] + text[1]
        known.append({"prompt": told(text, row), "answer": answer})
    return learn(folder, known, seed, 2000, width=64, rate=2e-3, tok=words())


def read(learner, shown, held):
    """The reader's share of right answers."""
    pairs = [(told(text, row), row["reference"]) for text, row in zip(shown, held, strict=True)]
    return learner.score(pairs)


def measured(learner, judge, held):
    """What a compressor is worth to the reader, how short and how often rightly silent it is."""
    said = dict(zip(map(put, held), learner.answers([put(row) for row in held]), strict=True))
    asked = [row for row in held if true(row["docs"], row["prompt"])]
    rest = [said[put(row)] for row in held if not true(row["docs"], row["prompt"])]
    short = [said[put(row)] for row in asked]
    count = words().tokenize
    return {
        "accuracy": read(judge, short, asked),
        "length": sum(len(count(text)) for text in short)
        / sum(len(count(" ".join(row["docs"]))) for row in asked),
        "silent": rest.count("") / len(rest),
    }


def shuffled(made, seed):
    """The control: each question with another's summary, or with another's silence."""
    answers = [record["answer"] for record in made]
    random.Random(f"shuffled/{seed}").shuffle(answers)
    pairs = zip(made, answers, strict=True)
    return [{"prompt": record["prompt"], "answer": answer} for record, answer in pairs]


def student(folder, made, seed):
    return learn(folder, made, seed, 2000, width=64, rate=2e-3, empty_answers=True, tok=words())


def arms(folder, seed):
    """What the reader makes of all documents, of any one, of none, and of each compressor's
    summary."""
    judge = reader(folder / "reader", seed)
    speaks = Student.live(judge.model, licence="MIT")
    made = compressed(folder, rows(4000, seed), speaks, n=12)  # with 4, an eighth is missed
    known = {record["prompt"] for record in made}
    held = [row for row in rows(450, 500 + seed) if put(row) not in known]
    asked = [row for row in held if true(row["docs"], row["prompt"])]
    rng = random.Random(f"any/{seed}")
    found = {
        "all": read(judge, [" ".join(row["docs"]) for row in asked], asked),
        "any one": read(judge, [rng.choice(row["docs"]) for row in asked], asked),
        "none": read(judge, ["" for _ in asked], asked),
        "learned": measured(student(folder / "learned", made, seed), judge, held),
        "shuffled": measured(student(folder / "shuffled", shuffled(made, seed), seed), judge, held),
    }
    print(f"seed {seed}, {len(held)} questions: {found}", flush=True)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_a_compressor_keeps_what_the_reader_needs_and_says_nothing_else(tmp_path, seed):
    """Of eight documents at most one helps: with the summary the reader finds 95 of 100 of what it
    finds with all of them, at a fifth of the length at most; nothing is said at 90 of 100
    questions that no document answers. Controls: other questions' summaries; any one document."""
    found = arms(tmp_path, seed)
    best = found["learned"]
    assert best["accuracy"] >= 0.95 * found["all"]
    assert best["length"] <= 0.2 and best["silent"] >= 0.9
    assert max(found["shuffled"]["accuracy"], found["any one"], found["none"]) < 0.5 * found["all"]
