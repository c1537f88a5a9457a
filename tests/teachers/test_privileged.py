"""The teacher that is the student with the answer before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.losses.kl import ReverseKL
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.teachers.privileged import Privileged
from kd_lightning.types import IGNORE, Example, Message, Signal
from tests.rollouts import kit

LOGITS = frozenset({Signal.LOGITS})
HINT = "{answer}! {prompt}"


def made(**more):
    """A student that is its own teacher, moved a little away from it."""
    student = kit.model(kit.folders()[0])
    teacher = Privileged(**{"hint": HINT, "template": "plain", **more})
    teacher.attach(student)
    teacher.materialize(torch.device("cpu"))
    return student, teacher


def plainly(model, example, answer):
    """The model's log-probabilities of the next token at each word of an answer, row by row."""
    encoder = Encoder(model.tokenizer, "plain")
    prompt = encoder.prompt(example)
    ids = torch.tensor([prompt + list(answer)])
    return model.transformer(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("drawn", [False, True], ids=["the data's words", "the student's own"])
def test_it_says_what_the_model_says_behind_the_other_question(drawn):
    student, teacher = made()
    batch = kit.batch(fillers=1)
    if drawn:
        batch = kit.roll(FromStudent(n=2, sampling=kit.SHORT), batch)
    output = teacher.forward(batch, LOGITS)
    found = output.logits.log_softmax(-1)
    assert found.shape[:2] == batch.input_ids.shape
    for row, example in enumerate(batch.examples):
        learned = batch.targets[row] != IGNORE
        told = replace(
            example.prompt[-1], content=f"{example.answer}! {example.prompt[-1].content}"
        )
        other = Example("x", (*example.prompt[:-1], told, Message("assistant", "")))
        expected = plainly(student, other, batch.targets[row][learned].tolist())
        torch.testing.assert_close(found[row][learned], expected[:, : found.shape[-1]])
        blind = plainly(student, example, batch.targets[row][learned].tolist())
        assert (expected - blind).abs().max() > 1e-3  # the context matters


def test_the_student_learns_from_what_only_its_teacher_sees():
    student, teacher = made()
    batch = kit.batch()
    terms = ReverseKL()(student(batch), teacher.forward(batch, LOGITS), batch).terms
    assert sum(term.item() for term in terms.values()) > 1e-4


def test_what_was_written_with_braces_is_put_in_as_it_is():
    _, teacher = made()
    known = Encoder(teacher.tokenizer, "plain")
    example = Example.dialogue(id="r", user="{answer} a {prompt}", assistant="{prompt}")
    expected = Example.dialogue(id="r", user="{prompt}! {answer} a {prompt}", assistant="")
    assert teacher._prompt(example) == known.prompt(expected)


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(KDError, match="shows the teacher nothing"):
        Privileged(hint="{prompt}")
    _, teacher = made()
    with pytest.raises(KDError, match="asks nothing"):
        teacher.forward(kit.documents(1), LOGITS)
    turns = [Message(r, "ab") for r in ("user", "assistant", "user", "assistant")]
    batch = kit.batch([Example("two", tuple(turns))])
    with pytest.raises(KDError, match="learns several turns"):
        teacher.forward(batch, LOGITS)
    long = Example.dialogue(id="long", user="a", assistant="b" * 70)
    rows = Collate(0, {})([Encoder(teacher.tokenizer, "plain").conversation(long)])
    monkeypatch.setattr(teacher.model.transformer.config, "max_position_embeddings", 80)
    with pytest.raises(KDError, match="the model has 80 positions"):
        teacher.forward(rows, LOGITS)
