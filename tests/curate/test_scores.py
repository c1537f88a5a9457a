"""Perplexity, difficulty and confidence against the sums written out."""

import math

import pytest

from kd_lightning.curate.scores import IFD, Confidence, Perplexity
from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import Kind
from tests.curate.kit import Rule, ran, records, work


def likely(prompt: str, word: str) -> float:
    """Words of the prompt are likely."""
    return 0.5 if word in prompt.split() else 0.125


ROWS = records(
    {"prompt": "say red blue", "answer": "red blue"},
    {"prompt": "say something", "answer": "red red"},
    {"prompt": "say red", "answer": "red green"},
)


def test_perplexity():
    found = Perplexity().run(ROWS, work(student=Rule(likely=likely)))
    assert [r["perplexity"] for r in found] == pytest.approx([2.0, 8.0, math.sqrt(2 * 8)])
    assert found[0].lineage[-1] == {"step": "curator", "from": ["r0"], "by": "student"}


def test_difficulty_is_the_ratio_of_two_perplexities():
    rule = Rule(likely=likely)
    found = IFD().run(ROWS, work(student=rule))
    assert [r["ifd"] for r in found] == pytest.approx([2 / 8, 8 / 8, 4 / 8])
    alone = [r for r in rule.asked if r.prompt.plain]
    assert len(alone) == 3 and len(rule.asked) == 6


def test_the_reversed_difficulty_scores_the_instruction():
    rule = Rule(likely=likely)
    (one,) = IFD(reversed=True, into="rifd", question="{answer} ?").run(
        ROWS[:1], work(student=rule)
    )
    # say, red, blue given "red blue ?": 1/8, 1/2, 1/2; alone: 1/8 each
    given, alone = -math.log(1 / 8 * 1 / 2 * 1 / 2) / 3, math.log(8)
    assert one["rifd"] == pytest.approx(math.exp(given) / math.exp(alone))
    assert rule.asked[0].texts == ("say red blue",)
    with pytest.raises(KDError, match="must hold"):
        IFD(reversed=True, question="what?")


def test_conversations_are_scored_by_their_last_answer():
    turns = [("user", "a"), ("assistant", "b"), ("user", "say red"), ("assistant", "red")]
    rows = records({"messages": [{"role": r, "content": c} for r, c in turns]})
    rule = Rule(likely=likely)
    (one,) = Perplexity().run(rows, work(student=rule))
    assert one["perplexity"] == pytest.approx(2.0)
    assert len(rule.asked[0].prompt.messages) == 3


def test_confidence_of_a_text_and_among_options():
    found = Confidence().run(ROWS[:1], work(teacher=Rule(likely=likely)))
    assert found[0]["confidence"] == pytest.approx(math.log(0.5))
    step = Confidence(options=["red", "green", "blue"])
    assert step.needs() == {"teacher": frozenset({Kind.CHOICES})}
    rows = records(
        {"prompt": "say red", "answer": " red"},
        {"prompt": "say red", "answer": "green"},
        {"prompt": "say red", "answer": "pink"},
    )
    at = work(teacher=Rule(likely=likely))
    red, green = step.run(rows, at)
    assert red["confidence"] == pytest.approx(0.5 / 0.75)
    assert green["confidence"] == pytest.approx(0.125 / 0.75)
    assert at.tally.dropped == {"answer is none of the options": 1}


@pytest.mark.parametrize("step", [Perplexity(), IFD(), Confidence("student")])
def test_what_cannot_be_scored_falls(step):
    rule = Rule(fails=lambda prompt: "too long" if prompt == "bad" else "")
    rows = records(
        {"answer": "a"},
        {"prompt": "p"},
        {"prompt": "bad", "answer": "a"},
        {"prompt": "p", "answer": "a"},
    )
    kept, fallen = ran(step, rows, work(student=rule))
    assert kept == ["r3"]
    assert fallen == {"no prompt": ["r0"], "no answer": ["r1"], "no score: too long": ["r2"]}


def test_nothing_is_asked_twice(tmp_path):
    rule = Rule(likely=likely)
    for _ in range(2):
        IFD().run(ROWS, work(student=rule, folder=tmp_path))
    assert len(rule.asked) == 6
