"""Recorded decoding steps: what generation draws, on the weights of the moment."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch

from kd_lightning.models import packing, recorded
from kd_lightning.models.attention import PACKS
from kd_lightning.models.drawing import Draw, draw
from kd_lightning.models.modes import evaluating
from kd_lightning.types import Sampling
from tests.models.packs import MORE, family

FREE = Sampling(temperature=1.0)
LENGTH = 24


@pytest.fixture
def played(monkeypatch):
    """How many batches were decoded by recorded steps."""
    made = []
    original = recorded.Decoding

    def counted(*arguments):
        made.append(original(*arguments))
        made[-1].prompts = arguments[1]
        return made[-1]

    monkeypatch.setattr(recorded, "Decoding", counted)
    return made


def both(model, draws, monkeypatch):
    """What recorded steps draw, and what generation draws."""
    with evaluating(model):
        mine = draw(model, draws, logprobs=True)
        with monkeypatch.context() as patch:
            patch.setattr(recorded, "possible", lambda *_: False)
            theirs = draw(model, draws, logprobs=True)
    return mine, theirs


def equal(mine, theirs):
    assert [(d.tokens, d.ended) for d in mine] == [(d.tokens, d.ended) for d in theirs]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-4, atol=1e-4)


def asked(how=(FREE,), lengths=(5, 9, 1, 7), room=LENGTH):
    """Prompts of several lengths, drawn in several ways."""
    torch.manual_seed(3)
    prompts = [tuple(torch.randint(4, 80, (n,)).tolist()) for n in lengths]
    return [
        Draw(p, Sampling(room, h.temperature, h.top_p, h.top_k, 5 + i, h.stop), room - i, i)
        for i, p in enumerate(prompts)
        for h in [how[i % len(how)]]
    ]


def tiny(kind="llama", attention="auto", window=500):
    """A tiny model of a family, its window (if it has one) beyond everything."""
    more = {"sliding_window": window} if MORE[kind].get("sliding_window") else {}
    return family(kind, attention, "auto", **more)


@pytest.mark.parametrize("kind", sorted(PACKS - recorded.ROUTED))
def test_every_family_draws_what_generation_draws(kind, played, monkeypatch):
    """Prompts of very unlike lengths too, whose padding is left out."""
    model = tiny(kind)
    equal(*both(model, asked(lengths=(5, 30, 1, 7)), monkeypatch))
    assert len(played) == 1
    assert isinstance(played[0]._step, torch.jit.ScriptFunction)  # not the plain one instead


@pytest.mark.parametrize("attention", ["eager", "sdpa", "per_sequence"])
def test_every_attention(attention, played, monkeypatch):
    model = tiny(attention=attention).float()  # transformers' eager mask is one of float32
    equal(*both(model, asked(), monkeypatch))
    assert len(played) == 1


def test_rows_with_settings_of_their_own(played, monkeypatch):
    how = (
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_p=0.8),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=1.0, stop=("a", "b")),
    )
    mine, theirs = both(tiny(), asked(how), monkeypatch)
    equal(mine, theirs)
    assert played and any(d.ended for d in mine)


def test_a_record_plays_the_weights_of_the_moment(played, monkeypatch):
    model = tiny()
    before, _ = both(model, asked(), monkeypatch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    after, theirs = both(model, asked(), monkeypatch)
    equal(after, theirs)
    assert [d.tokens for d in after] != [d.tokens for d in before]
    assert played[0]._step is played[1]._step


def test_a_model_is_recorded_once_whatever_the_rows_and_the_width(played):
    model = tiny()
    with evaluating(model):
        for lengths in ((5, 9, 1, 7), (3, 2, 6, 80), (5, 9, 1)):
            draw(model, asked(lengths=lengths))
    assert played[0]._step is played[1]._step is played[2]._step
    assert len(recorded._STEPS[model]) == 1


def test_rows_that_have_ended_leave_the_batch(played, monkeypatch):
    """Answers are those of generation, which goes on with all rows."""
    model = tiny()
    model.transformer.generation_config.eos_token_id = [2, *range(10, 18)]
    how = (FREE, Sampling(temperature=0.0), Sampling(temperature=1.0, top_k=30))
    draws = asked(how, lengths=(5, 9, 1, 7, 3, 4, 2, 11, 6, 8))
    mine, theirs = both(model, draws, monkeypatch)
    equal(mine, theirs)
    assert len({len(d.tokens) for d in mine}) > 1
    assert len(played[0]._batch._positions) < len(draws)


def test_padding_of_unlike_prompts_is_left_out(played, monkeypatch):
    packed = []
    prompts = packing.prompts
    monkeypatch.setattr(packing, "prompts", lambda *a: packed.append(prompts(*a)) or packed[-1])
    for lengths in ((5, 9, 1, 7), (5, 30, 1, 7)):
        equal(*both(tiny(), asked(lengths=lengths), monkeypatch))
    assert len(packed) == 1
    assert packed[0].past_key_values.layers[0].keys.shape[2] == 43


def test_a_prompt_of_several_answers_is_computed_once(played, monkeypatch):
    prompts = [draw.prompt for draw in asked()]
    draws = [Draw(p, Sampling(seed=1, temperature=1.0), LENGTH, i) for p in prompts for i in (0, 1)]
    mine, theirs = both(tiny(), draws, monkeypatch)
    equal(mine, theirs)
    assert len(played[0].prompts) == len(prompts)
    assert mine[0].tokens != mine[1].tokens


def test_what_was_drawn_before_changes_no_bit(played):
    """A resumed run draws what the undisturbed one draws: the first play is as all others."""
    drawn = []
    for times in (1, 6):
        model = tiny().float()
        with evaluating(model):
            for _ in range(times):
                last = draw(model, asked(), logprobs=True)
        drawn.append(last)
    assert len(played) == 7 and drawn[0] == drawn[1]


def test_a_record_keeps_no_model_alive():
    model = tiny()
    with evaluating(model):
        draw(model, asked())
    assert model in recorded._STEPS
    gone, transformer = ref(model), ref(model.transformer)
    del model
    gc.collect()
    assert gone() is None and transformer() is None


@pytest.mark.parametrize("why", ["short", "window", "penalty", "training", "experts", "autocast"])
def test_what_is_not_recorded(why, played):
    kind = {"window": "mistral", "experts": "mixtral"}.get(why, "llama")
    model = tiny(kind, window=20)
    if why == "penalty":
        model.transformer.generation_config.repetition_penalty = 1.2
    model.train(why == "training")
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        draw(model, asked(room=8 if why == "short" else LENGTH))
    assert not played


def test_a_record_that_differs_is_not_used(played, monkeypatch):
    wrong = lambda step, *_, **__: lambda *given: step(*given) + 0.1  # noqa: E731
    monkeypatch.setattr(torch.jit, "trace", wrong)
    model = tiny()
    mine, theirs = both(model, asked(), monkeypatch)
    equal(mine, theirs)
    assert played
