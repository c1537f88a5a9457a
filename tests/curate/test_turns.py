"""Prompts with their answers as conversations."""

import pytest

from kd_lightning.curate.turns import Turns
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work


def test_what_the_student_is_shown():
    rows = records(
        {"system": "s", "prompt": "p", "answer": "a"},
        {"prompt": "p", "answer": "a"},
        {"messages": [{"role": "user", "content": "u"}], "answer": "a"},
    )
    made = [record["messages"] for record in Turns().run(rows, work())]
    told = [[(turn["role"], turn["content"]) for turn in turns] for turns in made]
    assert told == [
        [("system", "s"), ("user", "p"), ("assistant", "a")],
        [("user", "p"), ("assistant", "a")],
        [("user", "u"), ("assistant", "a")],
    ]
    (bare,) = Turns(keep=False).run(rows[:1], work())
    assert set(bare.values) == {"messages"}


def test_what_cannot_be_a_conversation_falls():
    assert ran(Turns(), records({"answer": "a"}, {"prompt": "p"}))[1] == {
        "no prompt": ["r0"],
        "no answer": ["r1"],
    }
    with pytest.raises(KDError, match="field of their own"):
        Turns(answer="messages")
