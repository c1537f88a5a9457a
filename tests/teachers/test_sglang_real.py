"""SGLang's server (`make sglang`): what it says is what the same weights say in this process.

On a processor, in float32, without its kernels (sglang_cpu.py). The teacher is the shipped
configs/teacher/server_sglang.yaml with the address, the model and its folder put in. The demo
teacher has a token for each byte; the stories' tokenizer has words with their blanks, which SGLang
drops when it tells tokens. Not shown: its seeds, which need a kernel.
"""

from __future__ import annotations

import pytest

from kd_lightning.doctor.findings import Level
from kd_lightning.errors import KDError
from kd_lightning.losses import CrossEntropy
from kd_lightning.models.loading import resolve
from kd_lightning.teachers import LocalTeacher
from kd_lightning.teachers.generator import GeneratorError, Kind, Request
from kd_lightning.types import Message, Prompt, Sampling, Signal
from tests.doctor.kit import looked_at, patient, said
from tests.teachers import real, servers, test_wire
from tests.teachers.real import CHATS, CLOSE, HOW, TEXTS, drawn, same

pytestmark = pytest.mark.slow

WARM = Sampling(40, temperature=0.8, top_p=0.95, top_k=40, seed=11)
STORIES = [Prompt.text(words) for words in ("Once upon a time", "Lily wanted to", "The big dog")]


def shipped(url, folder, **more):
    return real.shipped("sglang", url, folder, **more)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with servers.sglang(resolve("demo"), tmp_path_factory.mktemp("log") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def telling(tmp_path_factory, stories):
    with servers.sglang(stories, tmp_path_factory.mktemp("log") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def remote(url):
    teacher = shipped(url, resolve("demo"))
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def local():
    return LocalTeacher("demo", dtype="float32", attention="sdpa")


# ---- what it says -----------------------------------------------------------------------------


def test_greedy_answers_with_ids_and_log_probabilities_are_the_local_teachers(remote, local):
    pairs = list(zip(drawn(remote), drawn(local), strict=True))
    for (found,), (expected,) in pairs:
        same(found, expected)
    assert sum(found.finished for (found,), _ in pairs) >= len(CHATS)
    with pytest.raises(AssertionError):  # the control: another prompt's answer is another
        same(pairs[0][0][0], pairs[1][1][0])


def test_conversations_go_to_chat_and_are_worded_as_here(remote, local, url):
    turns = Prompt(
        (Message("system", "Answer."), Message("user", "Add 3 and 4."), Message("assistant", "7"),
         Message("user", "Write backwards: abc"))
    )  # fmt: skip
    for (found,), (expected,) in zip(
        drawn(remote, [turns], Sampling(12)), drawn(local, [turns], Sampling(12)), strict=True
    ):
        same(found, expected)
    alone = shipped(url, resolve("demo"), api="completions")
    for (found,), (expected,) in zip(drawn(alone, CHATS[:3]), drawn(local, CHATS[:3]), strict=True):
        same(found, expected)
    alone.close()


def test_several_are_drawn_and_told_at_temperature_1(remote, local, url):
    """With SGLANG_RETURN_ORIGINAL_LOGPROB=1; each with a seed of its own, and `n` is taken too."""
    prompts = [CHATS[0], *TEXTS]
    first = drawn(remote, prompts, WARM, 4)
    assert all(len(answers) == 4 for answers in first)
    assert any(len({a.tokens for a in answers}) > 1 for answers in first[1:])
    at_once = shipped(url, resolve("demo"), several=True)
    several = drawn(at_once, prompts, WARM, 4)
    assert any(len({a.tokens for a in answers}) > 1 for answers in several[1:])
    assert at_once.counts["requests"] < remote.counts["requests"]
    at_once.close()
    for prompt, some in zip(prompts, first, strict=True):
        for answer in some:
            if not prompt.plain or not answer.finished:
                want = local.score([prompt], [answer.text])[0].logprobs
                told = answer.logprobs[: len(want)]
                assert told == pytest.approx(want, abs=CLOSE), "not at temperature 1"


def test_stop_texts_and_limits_end_answers_as_they_do_here(remote, local):
    for how, finished in ((Sampling(40, stop=("=",)), True), (Sampling(5), False)):
        for (found,), (expected,) in zip(
            drawn(remote, CHATS[:2], how), drawn(local, CHATS[:2], how), strict=True
        ):
            assert found.finished is expected.finished is finished
            assert found.text == expected.text and "=" not in (found.text if finished else "")


def test_ids_go_and_come_back(remote, local):
    ids = [local.tokenizer.encode(text) for text in ("Add 3 and 4", "ab")]
    local.open()
    for found, expected in zip(remote.complete(ids, HOW), local.complete(ids, HOW), strict=True):
        assert (found.tokens, found.finished) == (expected.tokens, expected.finished)


# ---- what it says of given texts --------------------------------------------------------------


def test_given_texts_have_the_local_teachers_log_probabilities(remote, local, url):
    remote.require([Kind.GENERATE, Kind.SCORE, Kind.CHOICES], "a filter")
    assert Signal.LOGPROB in remote.offers
    prompts = [CHATS[0], CHATS[3], TEXTS[0]]
    texts = ["The sum is 7.", "it is not so", " b c"]
    expected = local.score(prompts, texts)
    for one, other in zip(remote.score(prompts, texts), expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)
    plain = shipped(url, resolve("demo"), tokenizer_path=None)
    (found,) = plain.score(prompts[2:], texts[2:])  # cut by the server
    assert found.logprobs == pytest.approx(expected[2].logprobs, abs=2e-4)
    with pytest.raises(GeneratorError, match="tokenizer_path"):
        plain.score(CHATS[:1], ["7"])
    plain.close()


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


def test_words_whose_tokens_lose_their_blanks(telling, stories, tmp_path):
    """`b` and ` b` have one name there: options are scored by their ids, and so are texts."""
    here = LocalTeacher(stories, dtype="float32", attention="sdpa")
    there = shipped(telling, stories)
    for (found,), (expected,) in zip(drawn(there, STORIES), drawn(here, STORIES), strict=True):
        same(found, expected)
    texts = [", there was a little girl", " go to the park", " was very happy."]
    for one, other in zip(there.score(STORIES, texts), here.score(STORIES, texts), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=CLOSE)
        assert "".join(one.tokens) != "".join(other.tokens), "it keeps blanks now"
    prompts = [Prompt.text("Once upon a"), Prompt.text("He saw a")]
    for stated in ("auto", True):  # found out by its echo, or by what it draws
        asked = shipped(telling, stories, logprobs=stated)
        for options in ([" big", " little"], ["b", "l"], [" big dog", " little girl"]):
            for found, expected in zip(
                asked.choice_logprobs(prompts, options), here.choice_logprobs(prompts, options),
                strict=True,
            ):  # fmt: skip
                assert found == pytest.approx(expected, abs=CLOSE), (stated, options)
        asked.close()
    cut = shipped(telling, stories, tokenizer_path=None)
    with pytest.raises(GeneratorError, match="write tokenizer_path"):
        cut.choice_logprobs(prompts, [" big", " little"])
    cut.close()
    there.close()
    settings = {"template": "plain", "api": "completions"}
    found = patient(tmp_path, loss=CrossEntropy(), teacher=shipped(telling, stories, **settings))
    checked = looked_at(found, "files", "server")["server"]
    assert "says the same" in said(checked, Level.OK), checked


# ---- what it refuses --------------------------------------------------------------------------


def test_its_refusals_are_told_in_its_words(telling, remote, stories):
    (reply,) = remote.ask([Request(Kind.GENERATE, CHATS[0], Sampling(5000))])
    assert "maximum context length of 1024 tokens" in reply.failure
    without = shipped(telling, stories, logprobs=False)  # the stories have no template
    with pytest.raises(KDError, match="chat template"):
        without.generate(CHATS[:1])
    without.close()


def test_what_the_fixtures_of_the_wire_state_is_what_it_sends(url):
    echo = real.fixtures_hold(url, test_wire.SGLANG_CHAT, test_wire.sglang_echo(real.SEEN))
    assert echo["text"].startswith("ab")


# ---- whole commands ---------------------------------------------------------------------------


def test_an_elicitation_over_it_writes_what_the_local_teacher_would(url, tmp_path):
    real.elicits_the_same("sglang", url, tmp_path, 4)


def test_the_doctor_finds_it_sound_and_the_same_as_the_model_here(url, tmp_path):
    def examined(teacher):
        found = patient(tmp_path, loss=CrossEntropy(), teacher=teacher)
        return looked_at(found, "files", "server")["server"]

    checked = examined(shipped(url, resolve("demo")))
    assert checked.level is Level.OK, checked
    told = said(checked, Level.OK)
    assert "can be true" in told and "says the same" in told and "when it is given" in told
    # the control: conversations are worded otherwise here than by its chat template
    other = examined(shipped(url, resolve("demo"), template="plain"))
    assert "another template" in said(other, Level.PROBLEM), other
