"""Which answer is chosen and which rejected."""

import pytest

from kd_lightning.curate.pairs import PairsBestRandom, PairsBestWorst, PairsGoldOwn
from kd_lightning.curate.pairs_made import PairsAgreed, PairsBySource, PairsOfFields
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work


def pairs(step, rows, at=None):
    return [(r["chosen"], r["rejected"]) for r in step.run(rows, at or work())]


FOUR = {"candidates": ["a", "b", "c", "d"], "scores": [1, 4, 0, 2]}


def test_best_and_worst():
    assert pairs(PairsBestWorst(), records(FOUR)) == [("b", "c")]
    assert PairsBestWorst().run(records(FOUR), work())[0]["margin"] == 4
    rows = records(
        {"candidates": ["a", "b"], "scores": [1, 1]},
        {"candidates": ["a"], "scores": [1]},
        {"candidates": ["a", "b"], "scores": [1]},
        {"candidates": ["a", "b", "c"], "scores": [None, 2, 1]},
        {"candidates": ["a", "a"], "scores": [1, 2]},
    )
    kept, fallen = ran(PairsBestWorst(), rows)
    assert kept == ["r3"]
    assert fallen == {
        "tie": ["r0"],
        "fewer than two candidates": ["r1"],
        "candidates and scores are no lists of one length": ["r2"],
        "both answers are the same": ["r4"],
    }
    assert ran(PairsBestWorst(margin=1), rows[3:4])[1] == {"tie": ["r3"]}


def test_best_and_any_other():
    drawn = [pairs(PairsBestRandom(), records(FOUR), work(seed))[0] for seed in range(40)]
    assert {chosen for chosen, _ in drawn} == {"b"}
    assert {rejected for _, rejected in drawn} == {"a", "c", "d"}
    assert pairs(PairsBestRandom(), records(FOUR)) == pairs(PairsBestRandom(), records(FOUR))


def test_gold_against_own():
    rows = records(
        {"reference": "g", "candidates": ["g", "x"]},
        {"reference": "g", "candidates": ["g"]},
        {"candidates": ["x"]},
    )
    assert pairs(PairsGoldOwn(), rows) == [("g", "x")]
    assert ran(PairsGoldOwn(), rows)[1] == {"no other candidates": ["r1"], "no reference": ["r2"]}
    assert pairs(PairsGoldOwn(own="answer"), records({"reference": "g", "answer": "x"})) == [
        ("g", "x")
    ]


def test_fields_by_construction():
    rows = records(
        {"revision": "r", "answer": "a"}, {"revision": "r"}, {"revision": "r", "answer": "r"}
    )
    kept, fallen = ran(PairsOfFields(), rows)
    assert kept == ["r0"]
    assert fallen == {"no answer": ["r1"], "both answers are the same": ["r2"]}


def test_by_the_size_of_the_source():
    rows = records(
        {"candidates": ["s", "l", "m", "?"], "sources": ["small", "large", "middle", "other"]},
        {"candidates": ["s", "t"], "sources": ["small", "small"]},
    )
    step = PairsBySource(["large", "middle", "small"])
    drawn = {pairs(step, rows[:1], work(seed))[0] for seed in range(20)}
    assert drawn == {("l", "s"), ("l", "m")}
    assert ran(step, rows)[1] == {"one source only": ["r1"]}
    with pytest.raises(KDError, match="at least 2"):
        PairsBySource(["large"])


def test_by_a_ranking_or_a_verdict():
    rows = records(
        {"candidates": ["a", "b", "c"], "agreed": [2, 0]},
        {"candidates": ["a", "b", "c"], "agreed": ["B", "C", "A"]},
        {"candidates": ["a", "b"], "agreed": "B"},
        {"candidates": ["a", "b"], "agreed": "tie"},
        {"candidates": ["a", "b", "c"], "agreed": "A"},
        {"candidates": ["a", "b"], "agreed": [0, 5]},
        {"candidates": ["a", "b"]},
    )
    assert pairs(PairsAgreed(), rows) == [("c", "a"), ("b", "a"), ("b", "a")]
    assert ran(PairsAgreed(), rows)[1] == {
        "tie or unknown candidate": ["r3", "r5", "r6"],
        "one candidate is ranked only": ["r4"],
    }
