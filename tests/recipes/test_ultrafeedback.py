"""UltraFeedback: a pool under principles, ratings side by side, and what the ratings are worth."""

import json
import random
import re

import pytest

from kd_lightning.elicit.parsers import Malformed, Marks
from kd_lightning.teachers.ensemble import Ensemble
from kd_lightning.teachers.scripted import spoken
from tests.recipes.kit import learn, recipe
from tests.recipes.speakers import Says, share
from tests.recipes.tasks import words

MODELS = {
    "good": lambda word: word[::-1],
    "cuts": lambda word: word[::-1][1:],
    "copies": lambda word: word,
    "shifts": lambda word: word[1:] + word[0],
}
"""What the models of the pool make of a word that is to be reversed."""


def pool():
    def says(rule):
        return lambda prompt, rng: rule(prompt.messages[-1].content)

    return Ensemble([Says(says(rule), name) for name, rule in MODELS.items()], name="pool")


def mark(word, text, aspect):
    """How well a text reverses a word, 1 to 5; a tenth of the words the judge reads wrongly."""
    if aspect == "honesty":
        return "N/A"
    wanted = word if share("judge", word) < 0.1 else word[::-1]
    same = sum(a == b for a, b in zip(wanted, text, strict=False))
    return 5 if text == wanted else 1 + min(3, 3 * same // len(wanted))


def judge(prompt, rng):
    text = spoken(prompt)
    word = re.search(r"Task:\n(.+)", text)[1]
    if "Overall score" in text:
        answer = re.search(r"Answer:\n(.+)", text)[1]
        return f"So it is.\nOverall score: {2 * mark(word, answer, 'whole')}"
    aspect = re.search(r"Rate each text by (\w+)", text)[1]
    shown = re.findall(r"^Text \d+:\n(.+)", text, re.M)
    lines = [f"Text {i}: {mark(word, one, aspect)}" for i, one in enumerate(shown, 1)]
    if share("lazy", word, aspect) < 0.05:
        lines.pop()  # one is forgotten, whenever it is asked
    return "\n".join(["Each in a line.", *lines])


def ranked(folder, rows):
    return recipe("ultrafeedback", folder, {"pool": pool(), "judge": Says(judge)}, rows)


def rows_of(count, seed):
    return [
        {"prompt": row["prompt"], "source": "abc"[i % 3]}
        for i, row in enumerate(words(count, seed, 3, 4))
    ]


def test_lists_hold_who_spoke_under_what_and_how_it_was_rated(tmp_path):
    rows = rows_of(80, 0)
    made = ranked(tmp_path, rows)
    lazy = {
        row["prompt"]
        for row in rows
        for aspect in ("instructions", "honesty", "truthfulness", "helpfulness")
        if share("lazy", row["prompt"], aspect) < 0.05
    }
    assert {row["prompt"] for row in rows} - {r["prompt"] for r in made} == lazy and lazy
    pairs = set()
    for record in made:
        lists = ("candidates", "scores", "ratings", "sources", "principles", "critiques")
        assert {len(record[name]) for name in lists} == {4}
        assert record["overall"] and record["source"] in "abc"
        each = zip(*(record[name] for name in ("candidates", *lists[1:4])), strict=True)
        for text, score, rated, model in each:
            assert text == MODELS[model](record["prompt"])
            assert set(rated) == {"instructions", "truthfulness", "helpfulness"}  # honesty: N/A
            assert score == mark(record["prompt"], text, "any")
        pairs |= set(zip(record["sources"], record["principles"], strict=True))
    assert len(pairs) == 16  # each model under each principle


def test_sources_have_quotas(tmp_path):
    def two(run):
        run.steps[1].k = 2

    made = recipe(
        "ultrafeedback", tmp_path, {"pool": pool(), "judge": Says(judge)}, rows_of(12, 1), two
    )
    assert len(made) <= 6
    told = json.loads((tmp_path / "set/card.json").read_text())["steps"][1]
    assert told["dropped"] == {"its source has enough": 6}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Text 1: 4\nText 2: N/A", [4, None]),
        ("reasons\n- **Text 1**: 2\nText 2: 3.5", [2, 3.5]),
        ("Text 2: 4\nText 1: 3", None),
        ("Text 1: 4\nText 1: 3", None),
        ("Text 1: 6", None),
        ("Text 1: good", None),
        ("4, 3", None),
    ],
)
def test_ratings_are_read_or_refused(said, found):
    if found is None:
        with pytest.raises(Malformed):
            Marks().parse(said)
    else:
        assert Marks().parse(said) == [{"marks": found}]


def best(record, scores):
    text = record["candidates"][scores.index(max(scores))]
    return {"prompt": record["prompt"], "answer": text}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_rated_teach_and_with_permuted_ratings_they_do_not(tmp_path):
    """Best of four by the ratings, against the same ratings permuted among the four.

    A reward model on such lists, and best-of-n by it: tests/rewards.
    """
    found = []
    for seed in range(3):
        made = ranked(tmp_path / f"{seed}", rows_of(900, seed))
        rng = random.Random(seed)
        permuted = [rng.sample(record["scores"], 4) for record in made]
        held = [(row["prompt"], row["reference"]) for row in words(150, 90 + seed, 3, 4)]
        arms = (
            [best(record, record["scores"]) for record in made],
            [best(record, scores) for record, scores in zip(made, permuted, strict=True)],
        )
        found.append(
            [
                learn(tmp_path / f"{i}{seed}", rows, seed, 350).score(held)
                for i, rows in enumerate(arms)
            ]
        )
    print(found)
    assert min(rated for rated, _ in found) > max(drawn for _, drawn in found) + 0.2
