"""Fields renamed, kept, set, erased, relabelled, and conditions put before prompts."""

import pytest

from kd_lightning.curate.condition import ConditionOnScore, ConditionOnSource
from kd_lightning.curate.values import Erase, Keep, Relabel, Rename, Set
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work


def values(step, rows, at=None):
    return [dict(r.values) for r in step.run(rows, at or work())]


def test_rename_swaps_too():
    rows = records({"a": 1, "b": 2, "c": 3}, {"a": 1})
    assert values(Rename({"a": "b", "b": "a"}), rows) == [{"b": 1, "a": 2, "c": 3}]
    assert ran(Rename({"b": "x"}), rows)[1] == {"no b": ["r1"]}


def test_keep_and_set():
    rows = records({"a": 1, "b": 2})
    assert values(Keep(["a", "z"]), rows) == [{"a": 1}]
    assert values(Set({"licence": "MIT", "b": None}), rows) == [{"a": 1, "licence": "MIT"}]


def test_what_the_teacher_was_told_is_erased():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = records({"system": "s", "prompt": "p"}, {"messages": turns}, {"prompt": "p"})
    at = work()
    assert values(Erase(keep_as="strategy"), rows, at) == [
        {"prompt": "p", "strategy": "s"},
        {"messages": turns[1:], "strategy": "s"},
        {"prompt": "p"},
    ]
    assert at.tally.notes == {"erased": 2}
    new = {"role": "system", "content": "careful"}
    assert values(Erase("careful"), rows)[:2] == [
        {"system": "careful", "prompt": "p"},
        {"messages": [new, turns[1]]},
    ]
    with pytest.raises(KDError, match="another field"):
        Erase(keep_as="system")


def test_right_answers_for_all_or_the_least_sure():
    rows = records(
        {"answer": "x", "reference": "g", "confidence": 0.9},
        {"answer": "x", "reference": "g", "confidence": 0.1},
        {"answer": "x", "reference": "g"},
        {"answer": "x", "confidence": 0.95},
    )
    at = work()
    assert [v["answer"] for v in values(Relabel(), rows, at)] == ["g", "g", "g"]
    assert at.tally.dropped == {"no reference": 1} and at.tally.notes == {"relabelled": 3}
    step = Relabel(confidence="confidence", share=0.5)
    assert [v["answer"] for v in values(step, rows)] == ["x", "g", "g", "x"]


def test_a_token_for_each_quantile():
    rows = records(*({"prompt": "p", "score": s} for s in (5, 1, 3, 1, 9, 7)))
    step = ConditionOnScore(["<low>", "<middle>", "<high>"])
    told = [v["prompt"] for v in values(step, rows)]
    assert told == [f"<{w}> p" for w in ("middle", "low", "middle", "low", "high", "high")]
    equal = records(*({"prompt": "p", "score": 1} for _ in range(4)))
    assert {v["condition"] for v in values(step, equal)} == {"<low>"}
    with pytest.raises(KDError, match="at least two"):
        ConditionOnScore(["<one>"])


def test_a_token_for_the_source():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = records(
        {"messages": turns, "source": "expert"},
        {"messages": turns, "source": "novice"},
        {"source": "expert"},
    )
    step = ConditionOnSource({"expert": "GPT"}, field="messages", separator=": ")
    at = work()
    assert values(step, rows, at)[0]["messages"][1]["content"] == "GPT: u"
    assert turns[1]["content"] == "u", "the record that came in stays"
    assert at.tally.dropped == {"source without token": 1, "no messages": 1}
