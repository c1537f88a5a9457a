"""Contradictions, copies, ranges of a number."""

import pytest

from kd_lightning.curate import Bins, Contradictions, NotCopied
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work


def test_all_records_of_a_question_with_two_answers_fall():
    given = records(
        {"prompt": "Is 2 even?", "answer": "Yes."},
        {"prompt": "is 2 even", "answer": "no"},
        {"prompt": "Is 3 even?", "answer": "no"},
        {"prompt": "is 3 even", "answer": "No!"},
        {"answer": "no"},
    )
    kept, fallen = ran(Contradictions(), given)
    assert kept == ["r2", "r3"]
    assert fallen == {"answered differently elsewhere": ["r0", "r1"], "no prompt": ["r4"]}


def test_signs_count_where_there_are_no_words():
    given = records({"prompt": "+", "answer": "a"}, {"prompt": "-", "answer": "b"})
    assert ran(Contradictions(), given)[0] == ["r0", "r1"]


def test_a_block_of_the_question_must_not_come_back():
    block, other = "```python\nx = 1\n```", "```\nx = 2\n```"
    given = records(
        {"prompt": f"Explain.\n{block}", "answer": f"So:\n```\nx=1\n```\n{other}"},
        {"prompt": f"Explain.\n{block}", "answer": f"So:\n{other}"},
        {"prompt": "x = 1", "answer": "x  =  1"},
        {"prompt": "x = 1", "answer": ""},
    )
    kept, fallen = ran(NotCopied(), given)
    assert kept == ["r1", "r3"]
    assert fallen == {"answer repeats code of prompt": ["r0", "r2"]}


def test_a_bound_belongs_to_the_range_above_it():
    given = records({"score": 0.9}, {"score": 1}, {"score": 4}, {})
    at = work()
    step = Bins(bounds=[1.0, 2.0], names=["low", "middle", "high"])
    assert [r["bin"] for r in step.run(given, at)] == ["low", "middle", "high"]
    assert at.tally.dropped == {"no score": 1} and at.tally.notes["middle"] == 1


@pytest.mark.parametrize("bounds", [[2.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
def test_ranges_that_cannot_be(bounds):
    with pytest.raises(KDError, match="bounds must rise"):
        Bins(bounds=bounds)
