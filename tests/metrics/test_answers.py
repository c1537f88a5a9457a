"""Answers against references."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.metrics.answers import (
    final_number,
    number_match,
    rouge_l,
    token_f1,
)

WORDS = st.lists(
    st.sampled_from(
        [
            "the",
            "running",
            "runs",
            "cat",
            "cats",
            "sat",
            "on",
            "a",
            "12",
            "mats,",
            "flies",
            "FLY",
            "don't",
        ]
    ),
    max_size=12,
).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(answer=WORDS, references=st.lists(WORDS, min_size=1, max_size=3))
def test_rouge_l_is_that_of_the_reference_package(answer, references):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    wanted = max(scorer.score(ref, answer)["rougeL"].fmeasure for ref in references)
    assert rouge_l(answer, references) == pytest.approx(wanted, abs=1e-6)


def test_rouge_l_by_hand():
    # longest common subsequence: the, cat, the, mat; 5 and 6 words
    value = rouge_l("the cat on a mat", ["a dog", "the cat sat on the mat"])
    lcs = 4  # the cat on mat
    precision, recall = lcs / 5, lcs / 6
    assert value == pytest.approx(2 * precision * recall / (precision + recall))
    assert rouge_l("Running cats", ["run cat"]) == 1.0
    assert rouge_l("", ["a b"]) == 0.0


def test_token_f1_by_hand():
    # bags without articles and punctuation: {cat, sat} and {cat, sat, down}
    assert token_f1("The cat sat.", ["dogs", "cat sat down"]) == pytest.approx(0.8)
    assert token_f1("x", ["y"]) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 and 4\n#### 18", "18"),
        ("#### 1,234,567", "1234567"),
        ("#### $70,000.00", "70000"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### −5.", "-5"),
        ("It costs $18.", "18"),
        ("It costs 18.50 dollars.", "18.5"),
        ("10 - 7 = 3", "3"),
        ("we get 10-7", "7"),
        ("it is -7", "-7"),
        ("(-7)", "-7"),
        ("10 -7", "7"),
        ("vitamin B-12", "12"),
        ("- 5 apples", "5"),
        ("The answer is 12, since 3 * 4 makes it.", "12"),
        ("Answer: $1,200 for 3 days", "1200"),
        (r"thus \boxed{42} after 7 steps", "42"),
        ("50% of 8 is 4", "4"),
        ("#### .5", "0.5"),
        ("#### 3 apples, not 4", "3"),
        ("1. first\n2. second: 9", "9"),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "####", "#### many", "answer is unknown"])
def test_no_number(text):
    assert final_number(text) is None
    assert number_match(text, "#### 3") == 0.0


def test_number_match():
    assert number_match("so it is 1,000.00.", "steps\n#### 1000") == 1.0
    assert number_match("#### 999", "#### 1000") == 0.0


@given(st.integers(-(10**12), 10**12))
def test_any_integer_is_read_back(number):
    assert final_number(f"thus\n#### {number:,}") == number
    assert final_number(f"It is ${abs(number):,}.00.") == abs(number)
