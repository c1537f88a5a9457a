"""Rows over the limit: cut, left out or refused, and always counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_lightning.data.encoding import Encoded
from kd_lightning.data.length import Lengths
from kd_lightning.errors import KDError
from kd_lightning.types import Example


def row(*parts):
    """Stretches of tokens: (how many, weight); ids count up."""
    weights = [w for count, w in parts for _ in range(count)]
    example = Example.dialogue(id="my:3", user="q", assistant="a")
    return Encoded(example, np.arange(len(weights), dtype=np.int32), np.array(weights, np.float32))


def test_short_rows_stay_as_they_are():
    lengths = Lengths(8, "error")
    whole = row((5, 0), (3, 1))
    assert lengths.apply(whole) == [whole]
    assert not lengths.truncated


def test_error_names_the_row_and_what_is_lost():
    with pytest.raises(KDError, match=r"my:3 has 9 tokens, and 4 are allowed \(too many\)"):
        Lengths(4, "error").apply(row((3, 0), (6, 1)))
    with pytest.raises(KDError, match=r"my:3 .*answer would be cut off wholly"):
        Lengths(4, "error").apply(row((6, 0), (3, 1)))


def test_drop_counts():
    lengths = Lengths(4, "drop")
    assert lengths.apply(row((3, 0), (6, 1))) == []
    assert lengths.dropped == {"longer than 4 tokens": 1}


def test_left_keeps_the_answer_and_the_beginning():
    lengths = Lengths(6, "left", bos=0)
    (cut,) = lengths.apply(row((6, 0), (3, 1)))
    assert cut.ids.tolist() == [0, 4, 5, 6, 7, 8]
    assert cut.weights.tolist() == [0, 0, 0, 1, 1, 1]
    (without,) = Lengths(6, "left").apply(row((6, 0), (3, 1)))
    assert without.ids.tolist() == [3, 4, 5, 6, 7, 8]
    assert lengths.truncated == 1


def test_left_keeps_a_prompt_token_before_the_answer():
    lengths = Lengths(4, "left", bos=0)
    assert lengths.apply(row((5, 0), (3, 1))) == []  # only the beginning would be left of it
    assert Lengths(4, "left").apply(row((5, 0), (3, 1)))[0].ids.tolist() == [4, 5, 6, 7]
    assert lengths.dropped == {"answer alone longer than 4 tokens": 1}


def test_right_cuts_the_end_and_counts_answers_that_vanish():
    lengths = Lengths(6, "right")
    (cut,) = lengths.apply(row((4, 0), (5, 1)))
    assert cut.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert lengths.apply(row((6, 0), (2, 1))) == []
    assert lengths.truncated == 1
    assert lengths.dropped == {"answer cut off by the length limit": 1}


def test_nothing_to_learn_is_counted():
    lengths = Lengths(6, "error")
    assert lengths.apply(row((4, 0))) == []
    assert lengths.apply(row((1, 1))) == []
    assert lengths.dropped == {"nothing to learn": 2}


def test_rows_without_an_answer_are_kept_only_for_the_test():
    asks = Encoded(Example("r", ()), np.arange(4, dtype=np.int32), np.zeros(4, np.float32))
    assert Lengths(6, "drop", unanswered=True).apply(asks) == [asks]
    lengths = Lengths(6, "drop")
    assert lengths.apply(asks) == []
    assert lengths.dropped == {"no answer": 1}


@given(length=st.integers(2, 60), limit=st.integers(2, 20))
def test_windows_predict_every_token_once(length, limit):
    whole = row((length, 1))
    parts = Lengths(limit, "window").apply(whole)
    assert all(2 <= len(part) <= limit for part in parts)
    assert [i for part in parts for i in part.ids.tolist()[1:]] == list(range(1, length))


@given(
    parts=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 1])), min_size=1, max_size=6),
    limit=st.integers(2, 20),
    policy=st.sampled_from(["drop", "left", "right", "window"]),
)
def test_what_comes_out_fits_and_is_learned_from(parts, limit, policy):
    lengths = Lengths(limit, policy)
    whole = row(*parts)
    kept = lengths.apply(whole)
    assert all(len(part) <= limit for part in kept)
    if policy != "window":
        assert all(part.answered for part in kept)
        assert len(kept) + sum(lengths.dropped.values()) == 1
    if policy == "left" and kept and len(whole) > limit:
        assert kept[0].ids.tolist() == whole.ids.tolist()[-limit:]
