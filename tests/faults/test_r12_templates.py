"""R12: a template without generation marks never leaves a mask of zeros in silence."""

from __future__ import annotations

import pytest

from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.types import Example, Message
from tests.data import kit

TALK = (
    Message("user", "one?"),
    Message("assistant", "1st"),
    Message("user", "two?"),
    Message("assistant", "2nd"),
)
UNMARKED = {
    "chatml": kit.CHATML,
    "llama3": kit.LLAMA3,
    "gemma": kit.GEMMA,
    "gemma folded": kit.GEMMA_FOLDED,
    "mistral": kit.MISTRAL,
    "qwen3": kit.QWEN3,
}


@pytest.mark.parametrize("style", UNMARKED)
def test_r12_answers_are_found_where_transformers_finds_none(style):
    tokenizer = kit.byte_tokenizer(UNMARKED[style])
    turns = [{"role": m.role, "content": m.content} for m in TALK]
    theirs = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert not any(theirs["assistant_masks"])  # the trap: a warning in the log, nothing learned
    row = Encoder(tokenizer).conversation(Example("r", TALK))
    texts = kit.learned(tokenizer, row)
    assert len(texts) == 2 and "1st" in texts[0] and "2nd" in texts[1]
    assert not any("?" in text or "user" in text for text in texts)


TURN = "{{ '<|im_start|>' + m.role"
NOTHING = "{% generation %}{% endgeneration %}"
MARKED_WRONG = {
    "around nothing": kit.CHATML.replace(TURN, NOTHING + TURN),
    "in a comment": "{# {% generation %} #}" + kit.CHATML,
}


@pytest.mark.parametrize("style", MARKED_WRONG)
def test_r12_marks_that_leave_nothing_to_learn_are_loud(tmp_path, style):
    """Every row is left out and counted, and a run without rows does not begin."""
    made = kit.Echo(kit.numbers(tmp_path / "a.jsonl", 5), validation_share=0.0)
    made.tokenizer = kit.byte_tokenizer(MARKED_WRONG[style])
    with pytest.raises(KDError, match=r"no row of train is left \(5 nothing to learn\)"):
        made.encoded("train")


def test_r12_marks_around_something_else_are_refused():
    template = kit.MARKED.replace("== 'assistant'", "== 'user'")
    with pytest.raises(KDError, match=r"row r, turn 2: the {% generation %} marks .* before this"):
        Encoder(kit.byte_tokenizer(template)).conversation(Example("r", TALK))
