"""Continuous batching of transformers: the same answers as Generate's, and what it refuses.

What it uses of transformers beyond the documented calls (the list of processors of a manager, the
states of requests) stands in rollouts/continuous.py alone; these tests fail where it changes.
"""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.models.attention import PACKS
from kd_lightning.models.causal import build_student
from kd_lightning.models.drawing import Draw
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.rollouts import paged
from kd_lightning.rollouts.continuous import ContinuousBatching
from kd_lightning.rollouts.engines import Generate
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.teacher_mixed import TeacherMixed
from kd_lightning.types import Sampling
from tests.models.packs import family
from tests.rollouts import kit
from tests.tiny import tokenizer


def draws(number, **how):
    """Prompts of unlike lengths with unlike room."""
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(seed=4, **how)
    made = []
    for i in range(number):
        length = int(torch.randint(3, 40, (1,), generator=generator))
        prompt = torch.randint(4, 80, (length,), generator=generator).tolist()
        made.append(Draw(tuple(prompt), sampling, 3 + 6 * (i % 4), i % 3))
    return made


HOW = {
    "greedy": {},
    "free": {"temperature": 1.0},
    "nucleus": {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
}


@pytest.mark.parametrize("how", HOW)
def test_the_answers_are_those_of_generate(how):
    """Few rows at once, so that ended ones make room for others."""
    student = kit.model(kit.folders()[0])
    student.transformer.generation_config.eos_token_id = [2, *range(10, 18)]  # some answers end
    asked = draws(11, **HOW[how])
    want = Generate().draw(student, asked)
    got = ContinuousBatching(rows=4).draw(student, asked)
    assert [g.tokens for g in got] == [w.tokens for w in want]
    assert [g.ended for g in got] == [w.ended for w in want]
    for g, w in zip(got, want, strict=True):
        assert g.logprobs == pytest.approx(w.logprobs, abs=1e-5)
    assert 0 < sum(d.ended for d in want) < 11


def test_weights_of_the_moment_and_the_models_own_attention_afterwards():
    student = kit.model(kit.folders()[0], double=True)
    rows = kit.batch()
    before = student(rows).hidden
    attention = student.transformer.config._attn_implementation
    engine = ContinuousBatching()
    first = engine.draw(student, draws(4))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    second = engine.draw(student, draws(4))
    assert torch.equal(torch.random.get_rng_state(), state), "the run's random numbers moved"
    assert [d.tokens for d in second] == [d.tokens for d in Generate().draw(student, draws(4))]
    assert first != second
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.div_(1.1)
    assert student.transformer.config._attn_implementation == attention
    torch.testing.assert_close(student(rows).hidden, before)


def test_in_a_rollout_the_words_do_not_depend_on_how_rows_are_spread():
    chosen = kit.examples()
    rollout = FromStudent(2, kit.SHORT, engine=ContinuousBatching(rows=3))
    whole = kit.roll(rollout, kit.batch(chosen))
    parts = kit.texts(kit.roll(rollout, kit.batch(chosen[4:])))
    parts |= kit.texts(kit.roll(rollout, kit.batch(chosen[:4])))
    assert parts == kit.texts(whole) == kit.texts(kit.roll(FromStudent(2, kit.SHORT), kit.batch()))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(KDError, match="takes no change of scores"):
        kit.roll(TeacherMixed(0.3, sampling=kit.SHORT, engine=ContinuousBatching()), kit.batch())
    for bad in ({"rows": 0}, {"rows": 64, "batch_tokens": 8}):
        with pytest.raises(KDError, match="batch_tokens"):
            ContinuousBatching(**bad)


@pytest.mark.parametrize("why", ["penalty", "autocast", "capped"])
def test_a_model_it_cannot_draw_with_is_refused(why):
    model = family("gemma2" if why == "capped" else "llama", "auto", "auto")
    if why == "penalty":
        model.transformer.generation_config.repetition_penalty = 1.2
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
        pytest.raises(KDError, match=r"cannot draw, .*: write engine: Generate"),
    ):
        ContinuousBatching().draw(model, draws(2))


@pytest.mark.parametrize("kind", sorted(PACKS - {"gemma2"}))
def test_every_family_draws_what_generate_draws(kind):
    """Windows shorter than the answers, experts, learned positions."""
    model = family(kind, "auto", "auto")
    if kind in ("gpt2", "gpt_neox", "opt"):
        del model.transformer.config.num_key_value_heads  # the tests' own setting, not theirs
    asked = draws(5, temperature=1.0)
    want = Generate().draw(model, asked)
    got = ContinuousBatching(rows=3, batch_tokens=48).draw(model, asked)
    assert [g.tokens for g in got] == [w.tokens for w in want]
    for g, w in zip(got, want, strict=True):
        assert g.logprobs == pytest.approx(w.logprobs, abs=1e-5)


def test_adapters_draw_too_and_switched_off_ones_do_not():
    student = build_student(StudentSpec(path=kit.folders()[0], lora=LoraSpec(rank=4)), tokenizer())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    asked = draws(4, temperature=1.0)
    engine = ContinuousBatching()
    found = engine.draw(student, asked)
    assert [d.tokens for d in found] == [d.tokens for d in Generate().draw(student, asked)]
    with student.model.disable_adapter():
        without = engine.draw(student, asked)
    plain = Generate().draw(kit.model(kit.folders()[0], double=False), asked)
    assert [d.tokens for d in without] == [d.tokens for d in plain] != [d.tokens for d in found]


def test_another_transformers_is_said_to_be_another(monkeypatch):
    """A name that is used and is gone; the names are all there in the present one."""
    assert paged.known()
    gone = {**paged.USED, ("cache", "PagedAttentionCache"): ("update", "renamed")}
    monkeypatch.setattr(paged, "USED", gone)
    assert not paged.known.__wrapped__()
    monkeypatch.setattr(paged, "known", lambda: False)
    with pytest.raises(KDError, match=r"another way than 5\.23"):
        ContinuousBatching().draw(kit.model(kit.folders()[0]), draws(1))
