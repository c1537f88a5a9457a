"""A vLLM that really runs (`make vllm`): what it says is what the same weights say in this process.

The packaged demo teacher in float32, served without development mode. The teacher is the shipped
configs/teacher/server_vllm.yaml with the address, the model and its folder put in.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kd_lightning.doctor.findings import Level
from kd_lightning.errors import KDError
from kd_lightning.losses import CrossEntropy
from kd_lightning.models.loading import resolve
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers import LocalTeacher
from kd_lightning.teachers.generator import GeneratorError, Kind, Request
from kd_lightning.types import Message, Prompt, Sampling, Signal
from tests.doctor.kit import looked_at, patient, said
from tests.teachers import real, servers, test_wire
from tests.teachers.real import CHATS, CLOSE, HOW, TEXTS, drawn, same

pytestmark = pytest.mark.slow

WARM = Sampling(40, temperature=0.9, top_p=0.95, top_k=40, seed=11)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with servers.vllm(resolve("demo"), tmp_path_factory.mktemp("log") / "log") as (url, _):
        yield url


def shipped(url, **more):
    return real.shipped("vllm", url, resolve("demo"), **more)


@pytest.fixture(scope="module")
def remote(url):
    teacher = shipped(url)
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def local():
    return LocalTeacher("demo", dtype="float32", attention="sdpa")


# ---- what it says -----------------------------------------------------------------------------


def test_greedy_answers_with_ids_and_log_probabilities_are_the_local_teachers(remote, local):
    assert local.tokenizer.bos_token_id is None
    pairs = list(zip(drawn(remote), drawn(local), strict=True))
    for (found,), (expected,) in pairs:
        same(found, expected)
    assert sum(found.finished for (found,), _ in pairs) >= len(CHATS)
    with pytest.raises(AssertionError):  # the control: another prompt's answer is another
        same(pairs[0][0][0], pairs[1][1][0])


def test_conversations_go_to_chat_and_are_worded_as_here(remote, local, url):
    """The same ids by its chat template as by ours, a system text and several turns included."""
    turns = Prompt(
        (Message("system", "Answer."), Message("user", "Add 3 and 4."), Message("assistant", "7"),
         Message("user", "Write backwards: abc"))
    )  # fmt: skip
    for (found,), (expected,) in zip(
        drawn(remote, [turns], Sampling(12)), drawn(local, [turns], Sampling(12)), strict=True
    ):
        same(found, expected)
    alone = shipped(url, api="completions")
    for (found,), (expected,) in zip(drawn(alone, CHATS[:3]), drawn(local, CHATS[:3]), strict=True):
        same(found, expected)
    alone.close()


def test_drawn_ones_are_several_repeatable_and_told_at_temperature_1(remote, local):
    prompts = [*CHATS[:2], TEXTS[2]]
    first, again = drawn(remote, prompts, WARM, 4), drawn(remote, prompts, WARM, 4)
    for answers, repeated in zip(first, again, strict=True):
        assert [a.tokens for a in answers] == [a.tokens for a in repeated]
    assert all(len({a.tokens for a in drawn(remote, [p], WARM, 4)[0]}) > 1 for p in TEXTS[2:])
    other = drawn(remote, prompts, replace(WARM, seed=12), 4)
    assert [a.tokens for a in other[2]] != [a.tokens for a in first[2]]
    local.open()
    for prompt, answers in zip(prompts, first, strict=True):
        for answer in answers:
            want = local.score([prompt], [answer.text])[0].logprobs
            if not prompt.plain or not answer.finished:  # the end is drawn, and no part of a text
                told = answer.logprobs[: len(want)]
                assert told == pytest.approx(want, abs=CLOSE), "not at temperature 1"


def test_stop_texts_and_limits_end_answers_as_they_do_here(remote, local):
    stop, cut = Sampling(40, stop=("=",)), Sampling(5)
    sums = CHATS[:2]
    for how, finished in ((stop, True), (cut, False)):
        for (found,), (expected,) in zip(
            drawn(remote, sums, how), drawn(local, sums, how), strict=True
        ):
            assert found.finished is expected.finished is finished
            assert found.text == expected.text and "=" not in (found.text if finished else "")


# ---- what it says of given texts --------------------------------------------------------------


def test_given_texts_have_the_local_teachers_log_probabilities(remote, local):
    remote.require([Kind.GENERATE, Kind.SCORE, Kind.CHOICES], "a filter")
    assert Signal.LOGPROB in remote.offers
    prompts = [CHATS[0], CHATS[3], TEXTS[0]]
    texts = ["The sum is 7.", "it is not so", " b c"]
    found, expected = remote.score(prompts, texts), local.score(prompts, texts)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        # unlikely texts: tokens of 20 nats, where float32 leaves a little more
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def test_it_weighs_options_as_the_local_teacher_does(remote, local):
    for prompts, options in (
        ([TEXTS[2], TEXTS[1]], ["a", "b", "c"]),  # of one token: its likeliest, or scored
        ([CHATS[0], TEXTS[0]], ["yes", "no"]),  # of several
    ):
        pairs = zip(
            remote.choice_logprobs(prompts, options), local.choice_logprobs(prompts, options),
            strict=True,
        )  # fmt: skip
        for found, expected in pairs:
            assert found == pytest.approx(expected, abs=5e-4)


def test_without_its_tokenizer_texts_are_cut_by_the_server(url, local):
    plain = shipped(url, tokenizer_path=None)
    (found,), (expected,) = plain.score(TEXTS[:1], [" b c"]), local.score(TEXTS[:1], [" b c"])
    assert found.tokens == expected.tokens
    assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-4)
    with pytest.raises(GeneratorError, match="tokenizer_path"):
        plain.score(CHATS[:1], ["7"])
    plain.close()


def test_ids_go_and_come_back(remote, local):
    ids = [local.tokenizer.encode(text) for text in ("Add 3 and 4", "ab")]
    local.open()
    for found, expected in zip(remote.complete(ids, HOW), local.complete(ids, HOW), strict=True):
        assert (found.tokens, found.finished) == (expected.tokens, expected.finished)


# ---- what it refuses --------------------------------------------------------------------------


def test_its_refusals_are_told_in_its_words(url, remote):
    (reply,) = remote.ask([Request(Kind.GENERATE, CHATS[0], Sampling(5000))])
    assert "max_model_len=256" in reply.failure
    greedy = shipped(url, top_logprobs=21)
    with pytest.raises(KDError, match="max allowed: 20"):
        greedy.choice_logprobs(CHATS[:1], ["a", "b"])
    greedy.close()
    other = shipped(url, model="another", logprobs=False)
    with pytest.raises(GeneratorError, match=r"does not know the model 'another'.*demo_teacher"):
        other.generate(CHATS[:1])
    other.close()


def test_new_weights_are_refused_without_development_mode(url, tmp_path):
    engine = VLLMServer(url, model=resolve("demo"))
    with pytest.raises(GeneratorError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.load(tmp_path)
    engine.close()


def test_what_the_fixtures_of_the_wire_state_is_what_it_sends(url):
    """Every field that tests/teachers/test_wire.py makes up is here, of the same kind."""
    real.fixtures_hold(url, test_wire.VLLM_CHAT, test_wire.vllm_echo(real.SEEN))


# ---- whole commands ---------------------------------------------------------------------------


def test_an_elicitation_over_it_writes_what_the_local_teacher_would(url, tmp_path):
    real.elicits_the_same("vllm", url, tmp_path, 6)


def test_the_doctor_finds_it_sound_and_the_same_as_the_model_here(url, tmp_path):
    def examined(**more):
        found = patient(tmp_path, loss=CrossEntropy(), **more)
        return looked_at(found, "files", "server")["server"]

    checked = examined(teacher=shipped(url))
    assert checked.level is Level.OK, checked
    told = said(checked, Level.OK)
    assert "can be true" in told and "says the same" in told and "when it is given" in told
    drawing = FromStudent(engine=VLLMServer(url, model=resolve("demo")))
    told = said(examined(rollout=drawing), Level.OK)
    assert "can be true" in told and "when it is given" in told
    # the control: it answers before the turn of the assistant is opened
    other = shipped(url, extra={"add_generation_prompt": False})
    assert "another template" in said(examined(teacher=other), Level.PROBLEM)
