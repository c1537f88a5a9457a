"""Against a server that misbehaves: right retries, right final error, nothing lost or doubled."""

from __future__ import annotations

import json
import logging
import math
import socket
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers import LocalTeacher
from kd_lightning.teachers.generator import BudgetError, GeneratorError, Kind, Request, Usage
from kd_lightning.teachers.remote.budget import Budget
from kd_lightning.teachers.remote.failures import RequestError
from kd_lightning.teachers.remote.pace import Pace, Rate
from kd_lightning.teachers.remote.prices import price_of
from kd_lightning.teachers.remote.retries import Backoff, asked_wait
from kd_lightning.teachers.remote.texts import picked, tail
from kd_lightning.teachers.remote.wire import Piece
from kd_lightning.teachers.server import ServerTeacher
from kd_lightning.types import Prompt, Sampling, Signal
from tests.teachers.hostile import Act, serving, usual, words

KEY = "sk-canary-0123456789"


def teacher(server, **how) -> ServerTeacher:
    settled = {"logprobs": False, "backoff_seconds": 0.01, "exchange_seconds": 5.0, **how}
    return ServerTeacher(server.url, "m", **settled)


def asks(count: int) -> list[Request]:
    return [Request(Kind.GENERATE, Prompt.user(f"q{i}")) for i in range(count)]


def answered(found, count: int) -> None:
    assert [reply.completions[0].text for reply in found] == [f"Q{i}" for i in range(count)]


def once(act: Act):
    """Misbehave at the first try of every request."""
    known = set()

    def play(number, seen):
        text = words(seen.body)
        first = text not in known
        known.add(text)
        return act if first else Act()

    return play


PASSING = {
    "429": Act(429, {"error": {"message": "slow down"}}),
    "429 with Retry-After": Act(429, b"", {"Retry-After": "0"}),
    "500": Act(500, b"<html>oops</html>"),
    "503": Act(503, b""),
    "no answer in time": Act(after=5.0),
    "drip": Act(drip=0.05),
    "cut in the middle": Act(cut=True),
    "cut, without a length": Act(cut=True, chunked=True),
    "broken JSON": Act(body=b'{"choices": [{"mess'),
    "HTML": Act(body=b"<html>welcome</html>"),
    "nested without end": Act(body=b"[" * 100_000),
    "no choices": Act(body={"choices": []}),
    "an error in a 200": Act(body={"error": {"message": "upstream"}}),
    "no content": Act(body={"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
    "a choice of another kind": Act(body={"choices": ["hello"]}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again_and_nothing_is_lost_or_doubled(name):
    with serving(once(PASSING[name])) as server:
        asked = teacher(server, exchange_seconds=0.3)
        got = [pair for some in asked.replies(asks(6)) for pair in some]
        assert sorted(i for i, _ in got) == list(range(6))
        answered([reply for _, reply in sorted(got, key=lambda p: p[0])], 6)
        assert asked.counts["requests"] == 12 and asked.counts["retries"] == 6
        assert len(server.seen) == 12
        asked.close()


def test_a_mix_of_faults_loses_no_request():
    rng = Random(0)
    acts = [Act(500), Act(429, b"", {"Retry-After": "0"}), Act(cut=True), Act(body=b"{")]

    def play(number, seen):
        return rng.choice(acts) if rng.random() < 0.3 else Act()

    with serving(play) as server:
        asked = teacher(server, concurrency=20, retries=8)
        answered(asked.ask(asks(200)), 200)
        assert 1 < server.most <= 20
        asked.close()


def test_a_request_that_never_succeeds_falls_alone():
    def play(number, seen):
        return Act(500, {"error": {"message": "bad luck"}}) if words(seen.body) == "q1" else Act()

    with serving(play) as server:
        asked = teacher(server, retries=2)
        found = asked.ask(asks(3))
        assert [bool(reply.failure) for reply in found] == [False, True, False]
        assert "bad luck" in found[1].failure and "3 tries" in found[1].failure
        assert len(server.seen) == 2 + 3
        with pytest.raises(GeneratorError, match="bad luck"):
            asked.generate([Prompt.user("q1")])
        asked.close()


@pytest.mark.parametrize(
    "act",
    [
        Act(400, {"error": {"message": "too long for the model"}}),
        Act(422, {"detail": "too long for the model"}),
        Act(body={"choices": [{"finish_reason": "content_filter", "message": {}}]}),
        Act(body={"choices": [{"message": {"refusal": "I will not", "content": None}}]}),
        Act(body=b"x" * 3000),
        Act(body=b"x" * 3000, chunked=True),
    ],
    ids=["400", "422", "filtered", "refused", "huge", "huge, chunked"],
)
def test_what_cannot_pass_is_asked_once_and_falls(act):
    with serving(lambda number, seen: act if words(seen.body) == "q0" else Act()) as server:
        asked = teacher(server, max_bytes=2000)
        first, second = asked.ask(asks(2))
        assert first.failure and not second.failure
        assert len(server.seen) == 2 and asked.counts.get("retries", 0) == 0
        asked.close()


def test_many_in_a_row_that_come_to_nothing_stop_the_whole():
    with serving(lambda number, seen: Act(400, {"error": "no such field: seed"})) as server:
        asked = teacher(server, concurrency=2, stop_after=5)
        with pytest.raises(GeneratorError, match=r"5 requests.*no such field: seed"):
            asked.ask(asks(50))
        assert len(server.seen) <= 6
        asked.close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_it_at_once_and_is_named_by_its_variable(monkeypatch, status):
    monkeypatch.setenv("CANARY_KEY", KEY)
    act = Act(status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with serving(lambda number, seen: act) as server:
        asked = teacher(server, key_variable="CANARY_KEY", concurrency=1)
        with pytest.raises(GeneratorError, match="CANARY_KEY") as error:
            asked.ask(asks(5))
        assert len(server.seen) == 1
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in "".join(traceback.format_exception(error.value))
        asked.close()


def test_the_key_goes_nowhere_else(monkeypatch, caplog, capsys, tmp_path):
    """Not into replies (a server may send it back), reprs, identities, logs or settings."""
    monkeypatch.setenv("CANARY_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def play(number, seen):
        told = usual(seen)
        told["choices"][0]["message"]["content"] = str(seen.headers)
        return [Act(500, {"error": KEY}), Act(cut=True), Act(body=told)][number % 3]

    with serving(play) as server:
        asked = teacher(server, key_variable="CANARY_KEY", concurrency=1)
        (reply,) = asked.ask(asks(1))
        assert "<CANARY_KEY>" in reply.completions[0].text
        settings = {k: v for k, v in vars(asked).items() if not k.startswith("_")}
        told = [repr(reply.as_json()), repr(asked), asked.identity, repr(settings), caplog.text]
        told += [*capsys.readouterr(), repr(vars(asked))]
        assert not any(KEY in text for text in told)
        asked.close()


def test_an_unknown_model_is_told_with_those_that_there_are():
    listed = {"data": [{"id": "small"}, {"id": "large"}]}

    def play(number, seen):
        return Act(body=listed) if seen.path == "/v1/models" else Act(404, {"error": "no model m"})

    with serving(play) as server:
        asked = teacher(server)
        with pytest.raises(GeneratorError, match=r"'m'.*small, large"):
            asked.ask(asks(1))
        asked.close()


def test_redirects_are_not_followed(monkeypatch):
    monkeypatch.setenv("CANARY_KEY", KEY)
    with serving() as other:
        away = Act(302, b"", {"Location": f"{other.url}/chat/completions"})
        with serving(lambda number, seen: away) as server:
            asked = teacher(server, key_variable="CANARY_KEY")
            with pytest.raises(GeneratorError, match="sends elsewhere"):
                asked.ask(asks(1))
            assert not other.seen
            asked.close()


def test_a_server_that_is_not_there_is_an_error_after_the_tries():
    with serving() as server:
        url = server.url
    asked = ServerTeacher(url, "m", logprobs=False, retries=2, backoff_seconds=0.01)
    with pytest.raises(GeneratorError, match=r"cannot be reached.*3 tries"):
        asked.ask(asks(1))
    asked.close()


def test_a_peer_that_takes_the_connection_and_says_nothing_is_given_up():
    """Half-open: the system accepts for a process that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        asked = ServerTeacher(
            url, "m", logprobs=False, retries=1, backoff_seconds=0.01, exchange_seconds=0.2
        )
        (reply,) = asked.ask(asks(1))
        assert "no whole answer within" in reply.failure and "2 tries" in reply.failure
        asked.close()


@pytest.mark.parametrize("act", [Act(after=9), Act(drip=0.2), Act(429, b"", {"Retry-After": "0"})])
def test_the_deadline_holds_over_all_tries(act):
    with serving(lambda number, seen: act) as server:
        asked = teacher(server, exchange_seconds=0.4, deadline_seconds=1.0, retries=1000)
        start = time.monotonic()
        (reply,) = asked.ask(asks(1))
        assert reply.failure
        assert time.monotonic() - start < 8  # the peer alone would take 9 s and more, each time
        asked.close()


def test_retry_after_holds_everybody_and_one_beyond_the_deadline_ends_it():
    with serving(once(Act(429, b"", {"Retry-After": "1"}))) as server:
        asked = teacher(server, concurrency=4)
        start = time.monotonic()
        answered(asked.ask(asks(4)), 4)
        assert time.monotonic() - start >= 1.0
        asked.close()
    with serving(lambda number, seen: Act(429, b"", {"Retry-After": "86400"})) as server:
        asked = teacher(server, concurrency=1)
        with pytest.raises(GeneratorError, match="come again in 86400 s"):
            asked.ask(asks(3))
        assert len(server.seen) == 1
        asked.close()


def test_retry_after_is_a_number_or_a_date():
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert asked_wait({"Retry-After": "7"}) == 7.0
    assert asked_wait({"Retry-After": format_datetime(now + timedelta(seconds=90))}, now) == 90.0
    assert asked_wait({"Retry-After": format_datetime(now - timedelta(days=1))}, now) == 0.0
    assert [asked_wait({"Retry-After": x}) for x in ("", "soon", "nan", "inf")] == [None] * 4


def test_waits_double_up_to_a_limit_with_a_jitter_by_seed():
    wait = Backoff(first=1.0, longest=30.0)
    for attempt in range(8):
        most = min(30.0, 2.0**attempt)
        drawn = [wait.seconds(attempt, Random(i)) for i in range(200)]
        assert most / 2 < min(drawn) < 0.55 * most and 0.95 * most < max(drawn) <= most
    assert wait.seconds(3, Random(5)) == wait.seconds(3, Random(5))


# ------------------------------------------------------------------ limits
def collected(asked, requests):
    """What came before the error, and the error."""
    got = {}
    try:
        for some in asked.replies(requests):
            got.update(some)
    except GeneratorError as error:
        return got, error
    return got, None


def test_a_budget_of_requests_is_kept_and_what_was_paid_for_is_given():
    with serving() as server:
        asked = teacher(server, budget=Budget(requests=25), concurrency=8)
        got, error = collected(asked, asks(100))
        assert isinstance(error, BudgetError) and "requests = 25" in str(error)
        assert len(got) == 25 == len(server.seen) and not any(r.failure for r in got.values())
        asked.close()


@pytest.mark.parametrize("limit", [{"tokens": 700}, {"money": 0.0007}], ids=["tokens", "money"])
def test_a_budget_of_tokens_or_money_is_not_passed(limit):
    """Each answer takes 12 tokens; nobody knows that before, so room for 32 is kept."""
    with serving() as server:
        asked = teacher(
            server, budget=Budget(**limit), prices={"m": {"in": 1.0, "out": 1.0}}, concurrency=8
        )
        how = Sampling(max_new_tokens=20)
        got, error = collected(
            asked, [Request(Kind.GENERATE, Prompt.user(f"q{i}"), how) for i in range(200)]
        )
        assert isinstance(error, BudgetError)
        spent = sum((r.usage for r in got.values()), Usage())
        tokens = spent.prompt_tokens + spent.completion_tokens
        assert tokens == 12 * len(got) == 12 * len(server.seen)
        assert 700 - 32 - 12 < tokens <= 700
        assert spent.money == pytest.approx(tokens / 1e6)
        assert asked.usage.prompt_tokens == spent.prompt_tokens
        asked.close()


def test_what_was_used_before_counts_towards_the_budget():
    with serving() as server:
        asked = teacher(server, budget=Budget(requests=5))
        asked.charged(3, Usage(30, 6))
        got, error = collected(asked, asks(9))
        assert isinstance(error, BudgetError) and len(got) == 2
        asked.close()


def test_retries_do_not_pass_the_budget_either():
    with serving(lambda number, seen: Act(500)) as server:
        asked = teacher(server, budget=Budget(requests=3), retries=100, concurrency=1)
        got, error = collected(asked, asks(2))
        assert isinstance(error, BudgetError) and not got and len(server.seen) == 3
        asked.close()


def test_a_money_limit_needs_prices_and_prices_need_the_model(tmp_path):
    with serving() as server, pytest.raises(KDError, match="write prices"):
        teacher(server, budget=Budget(money=1.0)).open()
    file = tmp_path / "prices.yaml"
    file.write_text("m: {in: 0.5, out: 2}\n")
    assert price_of("m", str(file)).of(2_000_000, 500_000) == 2.0
    with pytest.raises(KDError, match="add a line `other"):
        price_of("other", str(file))
    for wrong in ("m: 3\n", "m: {in: 1}\n", "m: {in: -1, out: 0}\n", "- 1\n", "{"):
        file.write_text(wrong)
        with pytest.raises(KDError, match="price"):
            price_of("m", str(file))


def test_rates_are_even_with_a_second_at_once():
    rate, now, gone = Rate(per_minute=120), 0.0, []
    for _ in range(240):
        now += rate.take(1, now)
        gone.append(now)
    assert gone[:3] == [0.0, 0.0, 0.0] and gone[-1] == pytest.approx(239 / 2 - 1)
    assert gone[122] - gone[2] == pytest.approx(60.0)
    assert Rate(None).take(1e9, 0.0) == 0.0


def test_tokens_that_were_foreseen_but_not_used_are_given_back():
    pace = Pace(None, tokens_per_minute=600)
    assert pace.take(100, 0.0) == 0.0  # ten seconds' worth
    assert pace.take(10, 0.0) == pytest.approx(9.0)
    pace.tokens.correct(-100)
    assert pace.take(10, 1.0) == 0.0
    pace.hold(until=5.0)
    assert pace.held(2.0) == 3.0 and pace.take(0, 2.0) == 3.0


def test_requests_wait_for_the_rate():
    with serving() as server:
        asked = teacher(server, requests_per_minute=600)
        start = time.monotonic()
        answered(asked.ask(asks(16)), 16)
        assert time.monotonic() - start >= 0.4  # 16 at 10 a second, with a second's worth at once
        asked.close()


# ------------------------------------------------------------------ what is asked
def test_requests_are_taken_as_there_is_room_and_given_back_at_once():
    taken = []

    def endless():
        for i in range(10**9):
            taken.append(i)
            yield Request(Kind.GENERATE, Prompt.user(f"q{i}"))

    with serving() as server:
        asked = teacher(server, concurrency=4)
        got = {}
        for some in asked.replies(endless()):
            got.update(some)
            if len(got) > 20:
                break
        assert len(taken) <= len(got) + 2 * 4
        answered(asked.ask(asks(3)), 3)  # and it still answers
        asked.close()


def test_an_error_of_whoever_asks_comes_through():
    def wrong():
        yield from asks(2)
        raise RuntimeError("mine")

    with serving() as server:
        asked = teacher(server)
        with pytest.raises(RuntimeError, match="mine"):
            list(asked.replies(wrong()))
        asked.close()


def test_two_iterators_of_one_teacher_do_not_meet():
    with serving() as server:
        asked = teacher(server, concurrency=2)
        one, two = asked.replies(asks(10)), asked.replies(asks(10))
        first = dict(next(one))
        answered([r for _, r in sorted(p for some in two for p in some)], 10)
        for some in one:
            first.update(some)
        answered([first[i] for i in range(10)], 10)
        asked.close()


def test_sampling_goes_over_the_wire():
    how = Sampling(7, 0.8, 0.9, 5, seed=3, stop=("END",))
    with serving() as server:
        asked = teacher(server, extra={"min_p": 0}, length_field="max_completion_tokens")
        asked.generate([Prompt.user("a", system="s")], sampling=how)
        asked.generate([Prompt.text("a")], sampling=Sampling(7))
        chat, text = server.seen
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
        assert chat.path == "/v1/chat/completions" and text.path == "/v1/completions"
        assert chat.body == {
            "model": "m", "min_p": 0, "max_completion_tokens": 7, "temperature": 0.8, "top_p": 0.9,
            "top_k": 5, "seed": 3, "stop": ["END"], "messages": turns,
        }  # fmt: skip
        assert text.body == {
            "model": "m", "min_p": 0, "max_tokens": 7, "temperature": 0.0, "prompt": "a",
        }  # fmt: skip
        asked.close()


@pytest.mark.parametrize("kind", ["honours n", "ignores n", "refuses n"])
def test_several_answers_whether_the_server_takes_n_or_not(kind):
    def play(number, seen):
        n = seen.body.get("n", 1)
        if kind == "refuses n" and "n" in seen.body:
            return Act(422, {"error": "unsupported field: n"})
        told = usual(seen)
        told["choices"] = told["choices"][: 1 if kind == "ignores n" else n]
        for i, choice in enumerate(told["choices"]):
            choice["message"]["content"] = f"{seen.body['seed']}+{i}"
        return Act(body=told)

    with serving(play) as server:
        asked = teacher(server)
        how = Sampling(temperature=1.0, seed=5)
        (made,) = asked.generate([Prompt.user("q")], n=3, sampling=how)
        expected = [f"5+{i}" for i in range(3)] if kind == "honours n" else ["5+0", "6+0", "7+0"]
        assert [c.text for c in made] == expected
        assert len(server.seen) == {"honours n": 1, "ignores n": 3, "refuses n": 4}[kind]
        asked.close()


def test_greedy_answers_are_one_and_the_same_and_paid_for_once():
    with serving() as server:
        asked = teacher(server)
        (made,) = asked.generate([Prompt.user("q")], n=3)
        assert [c.text for c in made] == ["Q"] * 3 and len(server.seen) == 1
        asked.close()


def test_stop_texts_are_no_part_of_an_answer_and_length_is_not_an_end():
    def play(number, seen):
        told = {"text": "one END two", "finish_reason": "length"}
        return Act(body={"choices": [told]})

    with serving(play) as server:
        asked = teacher(server)
        ((cut,),) = asked.generate([Prompt.text("a")], sampling=Sampling(stop=("END",)))
        ((whole,),) = asked.generate([Prompt.text("a")])
        assert (cut.text, cut.finished) == ("one ", True)
        assert (whole.text, whole.finished) == ("one END two", False)
        asked.close()


# ------------------------------------------------------------------ log-probabilities
def letters(seen):
    """Completions of a server whose tokens are letters: log p = -(place + 1) / 10."""
    prompt = seen.body["prompt"]
    shown = [*prompt, "!"] if seen.body.get("echo") else ["!"]
    values = [None if i == 0 and len(shown) > 1 else -(i + 1) / 10 for i in range(len(shown))]
    told = {"tokens": shown, "token_logprobs": values}
    choice = {"text": "".join(shown), "finish_reason": "length", "logprobs": told}
    return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1}}


def test_given_texts_are_scored_from_the_echo():
    with serving(lambda number, seen: Act(body=letters(seen))) as server:
        asked = teacher(server, api="completions", logprobs="auto")
        asked.require([Kind.SCORE, Kind.CHOICES], "a judge")
        (score,) = asked.score([Prompt.text("ab")], ["cd"])
        assert score.tokens == ("c", "d") and score.logprobs == (-0.3, -0.4)
        body = server.seen[-1].body
        assert body["prompt"] == "abcd" and body["echo"] and body["max_tokens"] == 1
        asked.close()


def test_an_echo_that_was_ignored_is_found_out():
    """llama.cpp's silence: log-probabilities of the new token only, as if it were the text's."""

    def play(number, seen):
        return Act(body=letters(seen.__class__(seen.path, {}, {**seen.body, "echo": False})))

    with serving(play) as server:
        asked = teacher(server, api="completions", logprobs="auto")
        with pytest.raises(KDError, match="does not give"):
            asked.require([Kind.SCORE], "a judge")
        asked.close()
        stated = teacher(server, api="completions", logprobs=True)
        with pytest.raises(GeneratorError, match="do not end with the given text"):
            stated.score([Prompt.text("ab")], ["cd"])
        stated.close()


def test_the_end_of_an_echo_is_the_given_text():
    pieces = [Piece(t, -1.0, None, {}) for t in ("<s>", "On", "ce up", "on", " a", "!")]
    assert [p.text for p in tail(pieces, "pon a", 1)] == ["ce up", "on", " a"]
    with pytest.raises(RequestError, match="do not end"):
        tail(pieces, "pon b", 1)


def test_options_are_read_off_the_likeliest_tokens():
    top = {"A": math.log(0.9), "B": math.log(0.0995), "C": math.log(1e-4)}
    assert picked(top, ["B", "A"]) == (top["B"], top["A"])
    assert picked(top, ["A", "Z"]) == (top["A"], top["C"])  # at most the last one's
    left = {"A": math.log(0.9), "B": math.log(0.0995)}
    assert picked(left, ["A", "Z"]) == pytest.approx((left["A"], math.log(0.0005)))  # what is left
    with pytest.raises(RequestError, match="'Z' is not among the 3"):
        picked(top, ["C", "Z"])  # Z may be as likely as C
    with pytest.raises(RequestError, match="none of the options"):
        picked(top, ["X", "Y"])
    with pytest.raises(RequestError, match="begins like 'A'"):
        picked(top, ["A", "AB"])


def test_choices_in_a_chat():
    tops = [{"token": t, "logprob": v} for t, v in (("A", -0.2), ("B", -1.7), ("C", -9.0))]

    def play(number, seen):
        told = usual(seen)
        row = {"token": "A", "logprob": -0.2, "top_logprobs": tops}
        told["choices"][0]["logprobs"] = {"content": [row]}
        return Act(body=told)

    with serving(play) as server:
        asked = teacher(server, api="chat", logprobs="auto")
        asked.open()
        assert Signal.LOGPROB in asked.offers
        assert asked.choice_logprobs([Prompt.user("?")], ["B", "A"]) == [(-1.7, -0.2)]
        assert server.seen[-1].body["top_logprobs"] == 20
        with pytest.raises(KDError, match="given answers"):
            asked.require([Kind.SCORE], "a filter")
        asked.close()


@pytest.mark.parametrize("value", ["nan", 0.5, "much"])
def test_what_is_no_log_probability_is_asked_again(value):
    def play(number, seen):
        told = usual(seen)
        told["choices"][0]["logprobs"] = {"content": [{"token": "Q", "logprob": value}]}
        return Act(body=told)

    with serving(play) as server:
        asked = teacher(server, api="chat", logprobs=True, retries=1)
        (reply,) = asked.ask([Request(Kind.GENERATE, Prompt.user("q"), logprobs=True)])
        assert "log-probabilities" in reply.failure and len(server.seen) == 2
        asked.close()


def test_a_server_without_log_probabilities_is_refused_at_set_up():
    def play(number, seen):
        return Act(422, {"error": "unsupported: logprobs"}) if "logprobs" in seen.body else Act()

    with serving(play) as server:
        asked = teacher(server, logprobs="auto")
        with pytest.raises(KDError, match="a judge needs log-probabilities of options"):
            asked.require([Kind.GENERATE, Kind.CHOICES], "a judge")
        assert asked.offers == {Signal.TEXT}
        answered(asked.ask(asks(2)), 2)
        with pytest.raises(GeneratorError, match="unsupported"):
            asked.ask([Request(Kind.GENERATE, Prompt.user("q"), logprobs=True)] * 20)
        asked.close()


def test_answers_to_ids_carry_ids(tiny_teacher):
    local = LocalTeacher(tiny_teacher)
    ids = local.tokenizer.encode("Hello", add_special_tokens=False)

    def play(number, seen):
        assert seen.body["prompt"] == ids
        told = {"text": "you", "finish_reason": "stop"}
        return Act(body={"choices": [told | ({"token_ids": [7, 8]} if number else {})]})

    with serving(play) as server:
        asked = teacher(server, tokenizer_path=tiny_teacher)
        (cut,) = asked.complete([ids], Sampling(4))
        end = local.tokenizer.eos_token_id
        assert cut.tokens == (*local.tokenizer.encode("you", add_special_tokens=False), end)
        (told,) = asked.complete([ids], Sampling(4))
        assert told.tokens == (7, 8)
        asked.close()


# ------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000/v1", "http://"),
        ("ftp://host/v1", "http://"),
        ("http://host:eighty/v1", "address"),
        (f"https://user:{KEY}@host/v1", "alone"),
        (f"https://host/v1?key={KEY}", "alone"),
        ("http://models.example.org/v1", "in the clear"),
    ],
)
def test_addresses_are_checked_and_not_told_with_a_key(url, words):
    with pytest.raises(KDError, match=words) as error:
        ServerTeacher(url, "m", key_variable="CANARY_KEY")
    assert KEY not in str(error.value)


def test_plain_http_with_a_key_is_for_this_machine_or_by_the_users_word():
    ServerTeacher("http://127.0.0.1:1/v1", "m", key_variable="CANARY_KEY")
    ServerTeacher("http://[::1]:1/v1", "m", key_variable="CANARY_KEY")
    ServerTeacher("http://models.example.org/v1", "m")
    ServerTeacher("http://gpu3/v1", "m", key_variable="CANARY_KEY", allow_plain_http=True)


def test_a_key_in_place_of_a_variable_is_refused_and_not_told(monkeypatch):
    with pytest.raises(KDError, match="the name of an environment variable") as error:
        ServerTeacher("https://host/v1", "m", key_variable=KEY)
    assert KEY not in str(error.value)
    monkeypatch.delenv("CANARY_KEY", raising=False)
    with pytest.raises(GeneratorError, match="export the server's key"):
        ServerTeacher("https://host/v1", "m", key_variable="CANARY_KEY").open()
    monkeypatch.setenv("CANARY_KEY", f"{KEY}\nHost: other")
    with pytest.raises(GeneratorError, match="blank") as error:
        ServerTeacher("https://host/v1", "m", key_variable="CANARY_KEY").open()
    assert KEY not in str(error.value)


def test_nothing_is_touched_before_it_is_asked_and_identity_says_what_matters():
    one = ServerTeacher("http://127.0.0.1:9/v1/", "m")
    same = ServerTeacher("http://127.0.0.1:9/v1", "m", key_variable="CANARY_KEY", concurrency=3)
    other = ServerTeacher("http://127.0.0.1:9/v1", "m", extra={"top_k": 0})
    assert one.identity == same.identity != other.identity
    assert one.offers == {Signal.TEXT} and "CANARY_KEY" not in same.identity
    json.dumps(one.counts)
