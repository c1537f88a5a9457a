"""Answers that are drawn under a condition, and what of it is learned."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.rewards.by_condition import ByCondition
from kd_lightning.rollouts.conditions import Conditions
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.from_teacher import FromTeacher
from kd_lightning.types import IGNORE, Example, Message, Progress, Sampling
from tests.rollouts import kit
from tests.rollouts.test_rollouts import logprobs

TWO = ("good: {prompt}", "bad")


def told(made):
    return [example.meta["condition"] for example in made.examples]


def prompts(made):
    """Each row's text before what is learned."""
    tokenizer = kit.pair()[0].tokenizer
    starts = made.targets.ne(IGNORE).int().argmax(1).tolist()
    rows = zip(made.input_ids, starts, strict=True)
    return [tokenizer.decode(ids[: start + 1]) for ids, start in rows]


def by_hand(example: Example, question: str, system: str | None = None):
    """Greedy tokens behind a question that is put by hand."""
    student, _ = kit.pair()
    turns = [Message("system", system)] if system else []
    asked = Example(example.id, (*turns, Message("user", question), Message("assistant", "x")))
    ids = Encoder(student.tokenizer, "plain").prompt(asked)
    start = len(ids)
    while len(ids) < start + kit.GREEDY.max_new_tokens and ids[-1] != 2:
        ids.append(int(student.transformer(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[start:])


@pytest.mark.parametrize("trained", [False, True])
def test_they_are_drawn_behind_the_condition_and_learned_behind_what_is_chosen(trained):
    conditions = Conditions(TWO, trained=trained)
    made = kit.roll(FromStudent(2, kit.GREEDY, conditions=conditions), kit.batch())
    assert told(made) == list(TWO) * 6
    for example, (good, bad) in zip(kit.examples(), kit.texts(made).values(), strict=True):
        question = example.prompt[0].content
        assert good == by_hand(example, f"good: {question}")
        assert bad == by_hand(example, f"bad {question}")
    for prompt, example in zip(prompts(made), made.examples, strict=True):
        assert ("good" in prompt or "bad" in prompt) == trained
        assert example.prompt == next(e for e in kit.examples() if e.id == example.id).prompt
    plain = kit.texts(kit.roll(FromStudent(2, kit.GREEDY), kit.batch()))
    assert plain != kit.texts(made), "the conditions change nothing"


def test_behaviour_is_that_of_the_policy_that_was_asked_under_the_condition():
    student, _ = kit.pair()
    within = kit.roll(
        FromStudent(2, kit.SHORT, conditions=Conditions(TWO, trained=True)), kit.batch()
    )
    torch.testing.assert_close(
        within.behaviour.double(), logprobs(student, within), atol=2e-5, rtol=0
    )
    outside = kit.roll(FromStudent(2, kit.SHORT, conditions=Conditions(TWO)), kit.batch())
    assert kit.texts(outside) == kit.texts(within)
    kept = [x.behaviour[x.targets != IGNORE] for x in (outside, within)]
    torch.testing.assert_close(kept[0], kept[1])
    where = outside.targets != IGNORE
    far = (logprobs(student, outside)[where] - outside.behaviour.double()[where]).abs()
    assert far.max() > 0.01, "the words are as likely without the condition"


def test_a_condition_of_the_system():
    conditions = Conditions(("be brief",), role="system")
    rows = kit.examples(3)
    rows[2] = Example.dialogue(id="row-2", user="abab2", assistant="cdcdcd", system="hi")
    made = kit.roll(FromStudent(sampling=kit.GREEDY, conditions=conditions), kit.batch(rows))
    for example, (answer,) in zip(rows, kit.texts(made).values(), strict=True):
        question = next(m.content for m in example.prompt if m.role == "user")
        system = "be brief\n\nhi" if example.id == "row-2" else "be brief"
        assert answer == by_hand(example, question, system)


def test_drawn_ones_are_the_same_wherever_the_row_is_and_each_has_its_share():
    rollout = FromStudent(
        4, Sampling(1, temperature=1.0), conditions=Conditions(("a", "b", "c"), pick="drawn")
    )
    chosen = kit.examples()
    whole = kit.roll(rollout, kit.batch(chosen))
    parts = [kit.roll(rollout, kit.batch(some, fillers=1)) for some in (chosen[4:], chosen[:4])]

    of = {}
    for made in (whole, *parts):
        for example, answer in zip(made.examples, made.answers, strict=True):
            of.setdefault(id(made), []).append(
                (example.id, example.meta["condition"], answer.tokens)
            )
    first, *others = of.values()
    assert sorted(first) == sorted(x for other in others for x in other)
    seen = [
        text
        for step in range(30)
        for text in told(kit.roll(rollout, kit.batch(chosen[:2]), Progress(step, 30)))
    ]
    for text in "abc":
        assert 0.25 < seen.count(text) / len(seen) < 0.42


def test_the_teacher_too_may_be_asked_under_a_condition():
    made = kit.roll(FromTeacher(2, kit.GREEDY, conditions=Conditions(TWO)), kit.batch())
    plain = kit.texts(kit.roll(FromTeacher(2, kit.GREEDY), kit.batch()))
    assert kit.texts(made) != plain and told(made) == list(TWO) * 6


def test_a_reward_by_the_condition():
    made = kit.roll(FromStudent(2, kit.SHORT, conditions=Conditions(TWO)), kit.batch(fillers=1))
    reward = ByCondition({TWO[0]: 1.0, TWO[1]: 0.0})
    found = reward(made, [answer.text for answer in made.answers])
    assert found[:-1].tolist() == [1.0, 0.0] * 6 and found[-1].isnan()
    other = ByCondition({"good": 1.0})
    assert other(made, [answer.text for answer in made.answers]).isnan().all()
    assert other.logs() == {"unknown condition": 12.0}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conditions(()), "at least one text"),
        (lambda: Conditions(("a", " ")), "none may be empty"),
        (lambda: Conditions(("{prompt}",), role="system"), "write conditions.role=user"),
        (lambda: ByCondition({}), "name a number"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(KDError, match=said):
        make()


def test_rows_that_have_no_question_and_templates_that_differ_are_refused(tmp_path):
    rollout = FromStudent(sampling=kit.SHORT, conditions=Conditions(("a",)))
    with pytest.raises(KDError, match="row text-0 is no conversation"):
        kit.roll(rollout, kit.documents())
    other = tmp_path / "other.jinja"
    other.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    told = Conditions(("a",), template=str(other))
    with pytest.raises(KDError, match="was not cut by the template of the conditions"):
        kit.roll(FromStudent(sampling=kit.SHORT, conditions=told), kit.batch())
