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


def test_with_the_question_alone_it_is_the_student():
    """A hint of which the model sees only the question: no divergence, no gradient."""
    student, teacher = made(hint="{prompt}{answer}")
    batch = kit.batch([Example.dialogue(id="r", user="why", assistant="")])
    assert teacher._prompt(batch.examples[0]) == Encoder(student.tokenizer, "plain").prompt(
        batch.examples[0]
    )
    student, teacher = made()
    batch = kit.batch()
    loss = ReverseKL()
    terms = loss(student(batch), teacher.forward(batch, LOGITS), batch).terms
    assert sum(float(term) for term in terms.values()) > 1e-4


def test_texts_with_braces_are_put_in_as_they_are():
    _, teacher = made()
    example = Example.dialogue(id="r", user="{answer} or {prompt}", assistant="{prompt}")
    ids = teacher._prompt(example)
    assert "{prompt}! {answer} or {prompt}" in teacher.tokenizer.decode(ids)


def test_what_cannot_be_is_refused():
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
    limit = teacher.model.transformer.config.max_position_embeddings
    rows = Collate(0, {})([Encoder(teacher.tokenizer, "plain").conversation(long)])
    if len(rows.input_ids[0]) * 2 <= limit:
        teacher.model.transformer.config.max_position_embeddings = 80
    try:
        with pytest.raises(KDError, match="positions"):
            teacher.forward(rows, LOGITS)
    finally:
        teacher.model.transformer.config.max_position_embeddings = limit
