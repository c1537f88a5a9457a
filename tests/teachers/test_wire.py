"""Answers in the forms of vLLM and SGLang: our own words and numbers in their fields.

They need environments of their own, so what is shown is that each field which they state is read as
what they mean by it. They are held against what vLLM 0.32.0 (test_vllm_real.py) and SGLang 0.5.23
(test_sglang_real.py) send.
"""

from __future__ import annotations

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers import ServerTeacher
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.types import Prompt, Sampling
from tests.teachers.hostile import Act, serving

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
VLLM_MORE = {
    "service_tier": None, "system_fingerprint": "vllm-0.32.0-0", "kv_transfer_params": None,
    "ec_transfer_params": None, "metrics": None,
}  # fmt: skip
VLLM_CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{
        "index": 0,
        "message": {"role": "assistant", "content": "It rains", "refusal": None,
                    "annotations": None, "audio": None, "function_call": None, "reasoning": None},
        "logprobs": {"content": [
            {"token": "It", "logprob": -0.25, "bytes": [73, 116],
             "top_logprobs": [{"token": "It", "logprob": -0.25, "bytes": [73, 116]}]},
            {"token": " rains", "logprob": -1.5, "bytes": [32],
             "top_logprobs": [{"token": " rains", "logprob": -1.5, "bytes": [32]},
                              {"token": " snows", "logprob": -9999.0, "bytes": [32]}]},
        ]},
        "finish_reason": "stop", "stop_reason": None, "token_ids": [11, 12], "routed_experts": None,
    }],
    "usage": {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": None},
    "prompt_logprobs": None, "prompt_token_ids": [1, 2, 3], "prompt_text": None, **VLLM_MORE,
}  # fmt: skip
"""vLLM's chat, with `logprobs`, `top_logprobs` and `return_token_ids`; minus infinity is -9999."""


def vllm_echo(seen):
    """vLLM's completions with `echo`: the prompt's tokens first, of which the first has none.

    The text leaves the prompt out where ids are told as well (`return_token_ids`).
    """
    ids, told = seen.body["prompt"], {" a": -0.5, " b": -0.75}
    tokens = ["<s>", *(told if isinstance(ids, list) else [" a", " b"])]
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "text": " c",
            "logprobs": {
                "text_offset": [0, 3, 5, 7], "token_logprobs": [None, -0.5, -0.75, -2.0],
                "tokens": [*tokens, " c"],
                "top_logprobs": [None, {" a": -0.5, " z": -3.0}, {" b": -0.75}, {" c": -2.0}],
            },
            "finish_reason": "length", "stop_reason": None, "token_ids": [9],
            "prompt_logprobs": [None, {"7": {"logprob": -0.5, "rank": 1, "decoded_token": " a"}},
                                {"8": {"logprob": -0.75, "rank": 1, "decoded_token": " b"}}],
            "prompt_token_ids": [1, 7, 8], "routed_experts": None,
        }],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4,
                  "prompt_tokens_details": None, "completion_tokens_details": None},
        **VLLM_MORE,
    }  # fmt: skip


SGLANG_USAGE = {
    "prompt_tokens_details": None, "reasoning_tokens": 0, "completion_tokens_details": None,
}  # fmt: skip
SGLANG_MORE = {
    "metadata": {"weight_version": "default",
                 "weight_versions": [{"version": "default", "start": 0, "end": 1}]}
}  # fmt: skip
SGLANG_CHAT = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{
        "index": 0,
        "message": {"role": "assistant", "content": "It rains", "reasoning_content": None},
        "logprobs": {"content": [
            {"token": "It", "bytes": [73, 116], "logprob": -0.25,
             "top_logprobs": [{"token": "It", "bytes": [73, 116], "logprob": -0.25}]},
            {"token": " rains", "bytes": [32, 114], "logprob": -1.5,
             "top_logprobs": [{"token": " rains", "bytes": [32, 114], "logprob": -1.5}]},
        ]},
        "finish_reason": "stop", "matched_stop": 12, "prompt_token_ids": [1, 2, 3],
        "response_token_ids": [11, 12],
    }],
    "usage": {**USAGE, **SGLANG_USAGE}, **SGLANG_MORE,
}  # fmt: skip
"""SGLang's chat, with the same: its ids have another name there than in its completions."""


def sglang_echo(seen):
    """SGLang's: the same lists without offsets, in the text the prompt too, and its own fields."""
    told = vllm_echo(seen)
    (choice,) = told["choices"]
    given = choice["logprobs"] | {"text_offset": [-1] * 4}
    return {
        "id": "1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "text": " a b c", "logprobs": given, "finish_reason": "length",
            "matched_stop": None, "token_ids": [9], "prompt_token_ids": [1, 7, 8],
        }],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, **SGLANG_USAGE},
        **SGLANG_MORE,
    }  # fmt: skip


@pytest.mark.parametrize("told", [VLLM_CHAT, SGLANG_CHAT], ids=["vLLM", "SGLang"])
def test_a_chat_with_log_probabilities_and_ids(told):
    with serving(lambda number, seen: Act(body=told)) as server:
        asked = ServerTeacher(server.url, "m", api="chat", extra={"return_token_ids": True})
        (reply,) = asked.ask([Request(Kind.GENERATE, Prompt.user("?"), logprobs=True)])
        (said,) = reply.completions
        assert (said.text, said.tokens, said.finished) == ("It rains", (11, 12), True)
        assert said.logprobs == (-0.25, -1.5)
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 2)
        body = server.seen[-1].body
        assert body["logprobs"] is True and body["top_logprobs"] == 1 and body["return_token_ids"]
        asked.close()


@pytest.mark.parametrize("told", [vllm_echo, sglang_echo], ids=["vLLM", "SGLang"])
def test_given_texts_are_scored_from_the_echo_of_text_and_of_ids(told, stories):
    with serving(lambda number, seen: Act(body=told(seen))) as server:
        asked = ServerTeacher(server.url, "m", api="completions")
        (score,) = asked.score([Prompt.text(" a")], [" b"])
        assert score.tokens == (" b",) and score.logprobs == (-0.75,)
        asked.close()
        asked = ServerTeacher(server.url, "m", api="completions", tokenizer_path=stories)
        words = asked.tokenizer
        prompt, text = "a", "b"
        (score,) = asked.score([Prompt.text(prompt)], [text])
        body = server.seen[-1].body
        assert body["echo"] is True and body["logprobs"] == 1 and body["max_tokens"] == 1
        assert body["prompt"][0] == words.bos_token_id and len(body["prompt"]) == 3
        assert score.logprobs == (-0.75,), "the last id's, and not the new token's"
        asked.close()


@pytest.mark.parametrize("told", [vllm_echo, sglang_echo], ids=["vLLM", "SGLang"])
def test_both_are_found_to_score_when_they_are_opened(told):
    with serving(lambda number, seen: Act(body=told(seen))) as server:
        asked = ServerTeacher(server.url, "m", api="completions")
        asked.require([Kind.SCORE, Kind.CHOICES], "a filter")
        assert len(server.seen) == 2
        asked.close()


@pytest.mark.parametrize("probed", [True, False])
def test_options_are_not_told_by_tokens_that_have_lost_their_blanks(probed, stories):
    """SGLang's of a SentencePiece tokenizer: `b` may be ` b`. Options are scored by ids then."""

    def play(number, seen):
        text, tokens, prompt = " b", ["b"], seen.body["prompt"]
        if seen.body.get("echo"):
            tokens = ["<s>", "one", "two", "three", "b"]
            tokens = tokens if isinstance(prompt, str) else ["?"] * (len(prompt) + 1)
        told = {"tokens": tokens, "token_logprobs": [-0.75] * len(tokens),
                "top_logprobs": [{"b": -0.125, "l": -3.0}] * len(tokens)}  # fmt: skip
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": told}
        return Act(body={"choices": [choice], "usage": USAGE})

    with serving(play) as server:
        how = {"logprobs": "auto" if probed else True, "tokenizer_path": stories}
        asked = ServerTeacher(server.url, "m", api="completions", **how)
        (weighed,) = asked.choice_logprobs([Prompt.text("a")], ["b", "l"])
        assert weighed == (-0.75, -0.75), "of what the tokens' names say"
        assert len([seen for seen in server.seen if seen.body.get("echo")]) == 2 + probed
        asked.close()


def test_answers_are_asked_one_by_one_where_one_seed_would_draw_them_all():
    with serving(lambda number, seen: Act(body=VLLM_CHAT)) as server:
        asked = ServerTeacher(server.url, "m", logprobs=False, several=False)
        ((*said,),) = asked.generate([Prompt.user("?")], n=3, sampling=Sampling(4, 1.0, seed=5))
        assert len(said) == 3 and [s.body["seed"] for s in server.seen] == [5, 6, 7]
        assert not any("n" in s.body for s in server.seen)
        asked.close()


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_broke_off_is_asked_again_and_never_kept(reason):
    """Both end what they drop (overload, shutdown) with a 200, a part of the text and this word."""

    def play(number, seen):
        told = {"text": "half of", "finish_reason": reason if number == 0 else "stop", "index": 0}
        return Act(body={"choices": [told], "usage": USAGE})

    with serving(play) as server:
        asked = ServerTeacher(server.url, "m", logprobs=False, backoff_seconds=0.01)
        ((said,),) = asked.generate([Prompt.text("a")])
        assert said.finished and len(server.seen) == 2
        asked.close()
    with serving(lambda number, seen: play(0, seen)) as server:
        asked = ServerTeacher(server.url, "m", logprobs=False, backoff_seconds=0.01, retries=1)
        (reply,) = asked.ask([Request(Kind.GENERATE, Prompt.text("a"))])
        assert reason in reply.failure and len(server.seen) == 2
        asked.close()


def test_thoughts_that_a_parser_of_the_server_took_out_are_no_part_of_the_answer():
    """vLLM and SGLang with a reasoning parser: `reasoning` (or `reasoning_content`) beside it."""
    message = {"role": "assistant", "content": "4", "reasoning": "2+2", "reasoning_content": "2+2"}
    cut = {"role": "assistant", "content": None, "reasoning_content": "hm"}

    def play(number, seen):
        told = [{"index": 0, "message": message, "finish_reason": "stop"},
                {"index": 0, "message": cut, "finish_reason": "length"}][number]  # fmt: skip
        return Act(body={"choices": [told]})

    with serving(play) as server:
        asked = ServerTeacher(server.url, "m", logprobs=False)
        ((said,),) = asked.generate([Prompt.user("?")])
        assert said.text == "4"
        ((said,),) = asked.generate([Prompt.user("?")])
        assert (said.text, said.finished) == ("", False)
        asked.close()


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "maximum context length is 8", "type": "BadRequestError",
                   "param": "input_tokens", "code": 400}},
        {"object": "error", "message": "maximum context length is 8", "type": "BadRequest",
         "param": None, "code": 400},
    ],
    ids=["vLLM", "SGLang"],
)  # fmt: skip
def test_their_errors_are_told_in_their_words(error):
    with serving(lambda number, seen: Act(400, error)) as server:
        asked = ServerTeacher(server.url, "m", logprobs=False)
        (reply,) = asked.ask([Request(Kind.GENERATE, Prompt.user("?"), Sampling(4))])
        assert "maximum context length is 8" in reply.failure and len(server.seen) == 1
        asked.close()


def test_a_limit_of_top_log_probabilities_is_the_servers_and_is_told():
    """vLLM's --max-logprobs (20) and OpenAI's 20: more is refused with 400."""

    def play(number, seen):
        if (seen.body.get("top_logprobs") or 0) > 20:
            return Act(400, {"error": {"message": "Requested sample logprobs of 50, max is 20"}})
        return Act(body=VLLM_CHAT)

    with serving(play) as server:
        asked = ServerTeacher(server.url, "m", api="chat", top_logprobs=50)
        with pytest.raises(KDError, match="max is 20"):
            asked.choice_logprobs([Prompt.user("?")], ["It", "We"])
        asked.close()
