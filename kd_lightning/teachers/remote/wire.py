"""The words of the wire: OpenAI's chat and completions, as the servers in use speak them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_lightning.teachers.remote.failures import ExchangeError, RequestError
from kd_lightning.types import Message, Sampling

CHAT, COMPLETIONS = "/chat/completions", "/completions"

BROKEN = frozenset({"abort", "cancelled", "error"})
"""Ends that are not the model's own (vLLM, SGLang): what was said until then is no answer."""


@dataclass(frozen=True)
class Asked:
    """What all requests of one server share."""

    model: str
    """As the server calls it."""
    length_field: str = "max_tokens"
    """How it calls the longest answer."""
    seeds: bool = True
    """Whether it takes a seed."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its own."""

    def chat(self, messages: Sequence[Message], how: Sampling, **more: Any) -> dict[str, Any]:
        """A conversation to be answered."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return {**self._body(how), "messages": turns, **more}

    def text(self, prompt: str | Sequence[int], how: Sampling, **more: Any) -> dict[str, Any]:
        """A text (or its ids) to be gone on with."""
        return {
            **self._body(how, length_field="max_tokens"),
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            **more,
        }

    def _body(self, how: Sampling, length_field: str | None = None) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, **self.extra}
        body[length_field or self.length_field] = how.max_new_tokens
        body["temperature"] = how.temperature
        if how.temperature > 0:  # said though it is usual: some servers have other defaults
            body["top_p"] = how.top_p
            if how.top_k > 0:
                body["top_k"] = how.top_k
            if self.seeds:
                body["seed"] = how.seed
        if how.stop:
            body["stop"] = list(how.stop)
        return body


@dataclass(frozen=True)
class Piece:
    """One token of an answer."""

    text: str
    logprob: float | None
    """None: the first of a text, which nothing predicts."""
    id: int | None
    top: Mapping[str, float]
    """The likeliest tokens in its place."""


@dataclass(frozen=True)
class Choice:
    """One answer."""

    text: str
    finished: bool
    pieces: tuple[Piece, ...]
    """(): the server tells no log-probabilities."""
    ids: tuple[int, ...]
    """(): the server tells no ids."""


@dataclass(frozen=True)
class Said:
    """What a server answered to one call."""

    choices: tuple[Choice, ...]
    prompt_tokens: int | None
    """None: it does not count."""
    completion_tokens: int | None


def read(told: Mapping[str, Any]) -> Said:
    """An answer, checked: what is not as it must be is asked again."""
    choices = told.get("choices")
    if not isinstance(choices, list) or not choices:
        error = told.get("error")
        raise ExchangeError(f"the answer has no choices ({error})" if error else "no choices")
    usage = told.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    ordered = sorted(choices, key=_index) if len(choices) > 1 else choices
    return Said(
        tuple(map(_choice, ordered)),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _index(choice: Any) -> int:
    index = choice.get("index") if isinstance(choice, dict) else None
    return index if isinstance(index, int) else 0


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _choice(choice: Any) -> Choice:
    if not isinstance(choice, dict):
        raise ExchangeError("a choice is no object")
    reason = choice.get("finish_reason")
    text: Any
    if "message" in choice:
        message = choice["message"]
        message = message if isinstance(message, dict) else {}
        text = message.get("content")
        if message.get("refusal"):
            raise RequestError(f"the model refuses: {str(message['refusal'])[:200]}")
    else:
        text = choice.get("text")
    if reason in BROKEN:
        raise ExchangeError(f"the server broke the answer off (finish_reason {reason})")
    if reason in ("content_filter", "tool_calls", "function_call"):
        raise RequestError(f"no text but finish_reason {reason}")
    if text is None and reason == "length":
        text = ""  # all of its length went into thoughts that are not told
    if not isinstance(text, str):
        raise ExchangeError("a choice holds no text")
    ids = choice.get("token_ids", choice.get("response_token_ids"))  # the latter: SGLang's chats
    found = _pieces(choice["logprobs"]) if choice.get("logprobs") else ()
    if not isinstance(ids, list):
        ids = [p.id for p in found]
    whole = all(type(i) is int for i in ids)
    return Choice(text, reason != "length", found, tuple(ids) if whole else ())


def _pieces(told: Any) -> tuple[Piece, ...]:
    """Log-probabilities, in the form of chats or in that of completions."""
    try:
        rows = told.get("content")
        if rows is not None:
            return tuple(
                Piece(
                    str(row["token"]),
                    _logprob(row["logprob"]),
                    row.get("id"),
                    {str(t["token"]): _known(t["logprob"]) for t in row.get("top_logprobs") or ()},
                )
                for row in rows
            )
        tokens, values = told.get("tokens"), told.get("token_logprobs")
        if tokens is None or values is None:
            return ()
        tops = told.get("top_logprobs") or [None] * len(tokens)
        return tuple(
            Piece(str(t), _logprob(v), None, {k: _known(x) for k, x in (top or {}).items()})
            for t, v, top in zip(tokens, values, tops, strict=True)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ExchangeError("the log-probabilities are not as they should be") from None


def _logprob(value: Any) -> float | None:
    return None if value is None else _known(value)


def _known(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise ValueError(value)
    return min(number, 0.0)
