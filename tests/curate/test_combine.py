"""Several numbers as one, and the better of two versions."""

import pytest

from kd_lightning.curate.combine import Product, TakeBetter, WeightedSum
from kd_lightning.curate.scores import IFD
from kd_lightning.curate.select import Threshold
from kd_lightning.curate.values import Copy, Set
from tests.curate.kit import Rule, ids, ran, records, work


def test_sums_and_products():
    rows = records({"a": 2, "scores": [3, 5]}, {"a": 2}, {"scores": [1, 1]})
    at = work()
    (gap,) = WeightedSum({"scores.1": 1, "scores.0": -1, "a": 0.5}).run(rows, at)
    assert gap["score"] == 3.0
    assert at.tally.dropped == {"no scores.1": 1, "no a": 1}
    assert Product(["a", "scores.1"]).run(rows, work())[0]["score"] == 10


def test_the_better_version():
    rows = records(
        {"new": "n", "answer": "o", "x": 2, "y": 1},
        {"new": "n", "answer": "o", "x": 1, "y": 1},
        {"answer": "o", "x": 1, "y": 1},
        {"new": "n", "answer": "o", "x": 1},
    )
    step = TakeBetter({"new": "answer"}, "x", "y", flag="revised")
    at = work()
    made = step.run(rows, at)
    assert [(r["answer"], r["revised"]) for r in made] == [("n", True), ("o", False)]
    assert at.tally.dropped == {"no new": 1, "no y": 1} and at.tally.notes == {"taken": 1}
    lower = TakeBetter({"new": "answer"}, "y", "x", lowest=True).run(rows[:2], work())
    assert [r["answer"] for r in lower] == ["n", "o"]


def test_selective_reflection_by_difficulty():
    """The old instruction comes back where the new one makes the answer no harder to follow."""

    def likely(prompt, word):
        return 0.5 if word in prompt.split() else 0.125

    model = Rule(likely=likely)
    rows = records(
        {"prompt": "say red red", "answer": "red red", "made": "name a colour twice"},
        {"prompt": "name a colour", "answer": "red red", "made": "say red red"},
    )
    kept = Copy({"prompt": "old"}).run(rows, work())
    kept = TakeBetter({"made": "prompt"}, "one", "zero").run(
        Set({"one": 1, "zero": 0}).run(kept, work()), work()
    )  # the reviser's version
    for step in (IFD(into="was", prompt="old"), IFD(into="is")):
        kept = step.run(kept, work(student=model))
    kept = TakeBetter({"old": "prompt", "was": "is"}, "was", "is").run(kept, work())
    assert [r["prompt"] for r in kept] == ["name a colour twice", "name a colour"]
    assert [r["is"] for r in kept] == pytest.approx([1.0, 1.0])
    assert ids(kept) == ["r0", "r1"]
    assert ran(Threshold("is", most=0.99), kept)[0] == []
