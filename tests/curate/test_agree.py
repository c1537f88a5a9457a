"""Votes, orders, rankings and judges."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.curate.agree import Judges, RankAgreement, SwapConsistent, longest_common
from kd_lightning.curate.extract import Whole
from kd_lightning.curate.vote import Vote
from tests.curate.kit import ran, records, work


def test_the_majority_and_its_share():
    rows = records({"candidates": ["is 4", "so 5", "4.0", "none"], "scores": [1, 2, 3, 4]})
    (one,) = Vote().run(rows, work())
    assert (one["answer"], one["confidence"]) == ("is 4", 0.5)
    assert (one["candidates"], one["scores"]) == (["is 4", "4.0"], [1, 3])
    (all_,) = Vote(keep_agreeing=False).run(rows, work())
    assert len(all_["candidates"]) == 4


def test_who_falls():
    rows = records(
        {"candidates": ["1", "2", "3"]},
        {"candidates": ["a", "b"]},
        {"candidates": []},
        {"candidates": ["7"]},
    )
    kept, fallen = ran(Vote(min_votes=1), rows)
    assert kept == ["r3"]
    assert fallen == {
        "candidates disagree": ["r0"],
        "no candidate has a final answer": ["r1"],
        "no candidates": ["r2"],
    }
    assert ran(Vote(min_votes=2, threshold=0), rows)[0] == []
    assert ran(Vote(extract=Whole()), records({"candidates": ["Yes.", "yes", "no"]}))[0] == ["r0"]


def test_of_equals_the_first_wins():
    rows = records({"candidates": ["2", "1", "1", "2"]})
    assert Vote().run(rows, work())[0]["answer"] == "2"


def test_both_orders():
    rows = records(
        {"verdicts": ["A", "A"]},
        {"verdicts": ["A", "B"]},
        {"verdicts": ["tie", "Tie"]},
        {"verdicts": ["A"]},
        {"verdicts": [0.5, 2]},
        {"verdicts": [0.5, -2]},
        {"verdicts": [0, 0.0]},
    )
    kept, fallen = ran(SwapConsistent(), rows)
    assert kept == ["r0", "r4"]
    assert fallen == {
        "orders disagree": ["r1", "r5"],
        "tie": ["r2", "r6"],
        "fewer than two verdicts": ["r3"],
    }
    assert ran(SwapConsistent(keep_ties=True), rows)[0] == ["r0", "r2", "r4", "r6"]
    assert SwapConsistent().run(rows[:1], work())[0]["verdict"] == "A"


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(5)), st.permutations(range(5)))
def test_the_common_part_is_the_longest(a, b):
    found = longest_common(a, b)

    def inside(part, whole):
        rest = iter(whole)
        return all(x in rest for x in part)

    assert inside(found, a) and inside(found, b)
    parts = itertools.combinations(a, len(found) + 1)
    assert not any(inside(part, b) for part in parts)


def test_rankings_agree_in_part():
    rows = records(
        {"ranking": [2, 0, 1, 3], "other_ranking": [2, 1, 0, 3]},
        {"ranking": "B > A > C", "other_ranking": "C > A > B"},
        {"ranking": [0, 1]},
    )
    at = work()
    (one,) = RankAgreement().run(rows, at)
    assert one["agreed"] == [2, 0, 3]
    assert at.tally.dropped == {"rankings disagree": 1, "no other_ranking": 1}
    assert at.tally.notes == {"mean share that is agreed on": 0.75}


def test_several_judges():
    rows = records(
        {"ratings": {"help": 4, "truth": {"rating": "2", "rationale": "9 of 10"}}},
        {"ratings": [1, 5]},
        {"ratings": [3]},
        {"ratings": ["none", 3]},
    )
    kept, fallen = ran(Judges(spread=2), rows)
    assert kept == ["r0"]
    assert fallen == {"judges disagree": ["r1"], "too few scores": ["r2", "r3"]}
    assert [r["score"] for r in Judges().run(rows, work())] == pytest.approx([3.0, 3.0])
