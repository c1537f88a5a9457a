"""A server with a language model of its own, small enough to be right in every number it tells."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tests.teachers.hostile import Act, Play, Seen

WORDS = (" one", " two", " three", " four", " five", " six", " seven", " eight")


def likely(before: str) -> dict[str, float]:
    """log p of each next word, by the word before."""
    scores = {word: (zlib.crc32((before + word).encode()) % 1000) / 150 for word in WORDS}
    total = math.log(sum(map(math.exp, scores.values())))
    return {word: score - total for word, score in scores.items()}


def cut(text: str) -> list[str]:
    """A text as tokens: words with the blanks before them."""
    pieces = text.split(" ")
    return [piece if not i else f" {piece}" for i, piece in enumerate(pieces) if piece]


Row = tuple[str, float | None, dict[str, float]]
"""Token, log-probability, the likeliest of its place."""


def row(word: str, before: str, top: int) -> Row:
    known = likely(before)
    first = sorted(known, key=known.__getitem__, reverse=True)[:top]
    return word, known.get(word, -12.0), {w: known[w] for w in first}


def greedy(before: str, new: int, top: int) -> list[Row]:
    rows: list[Row] = []
    for _ in range(new):
        word = max(likely(before), key=likely(before).__getitem__)
        rows.append(row(word, before, top))
        before = word
    return rows


def speaking(
    bend: Callable[[list[Row]], list[Row]] = lambda rows: rows,
    bend_given: Callable[[list[Row]], list[Row]] = lambda rows: rows,
    tells: bool = True,
    echoes: bool = True,
    models: tuple[str, ...] = ("m",),
    most: int = 20,
) -> Play:
    """A play for `hostile.serving`.

    Args:
        bend: What becomes of the log-probabilities of drawn tokens before they are told.
        bend_given: Of those of given texts.
        tells: Whether it tells log-probabilities at all.
        echoes: Whether it scores given texts.
        models: What it serves; other names: status 404.
        most: Likeliest tokens that it tells.
    """

    def play(_: int, seen: Seen) -> Act:
        body = seen.body
        if seen.path.endswith("/models"):
            return Act(body={"data": [{"id": name} for name in models]})
        if body["model"] not in models:
            return Act(404, {"error": {"message": f"no model {body['model']}"}})
        chat = "messages" in body
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        top = int((body.get("top_logprobs", 0) if chat else body.get("logprobs", 0)) or 0)
        if top > most:
            return Act(400, {"error": {"message": f"at most {most} logprobs"}})
        said = greedy(cut(text)[-1], body["max_tokens"], top)
        answer = "".join(word for word, _, _ in said)
        rows = bend(said)
        if body.get("echo"):
            given = cut(text)
            echo: list[Row] = [(given[0], None, {})]
            echo += [row(b, a, top) for a, b in pairwise(given)]
            rows, answer = [*bend_given(echo), *said], text + answer
        told = tells and (echoes or not body.get("echo")) and (body.get("logprobs") is not None)
        return Act(body=spoken(answer, rows if told else [], chat, len(said)))

    return play


def spoken(text: str, rows: list[Row], chat: bool, made: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
        content = [
            {
                "token": word,
                "logprob": p,
                "top_logprobs": [{"token": w, "logprob": x} for w, x in top.items()],
            }
            for word, p, top in rows
        ]
        choice["logprobs"] = {"content": content} if rows else None
    else:
        choice["text"] = text
        choice["logprobs"] = {
            "tokens": [word for word, _, _ in rows],
            "token_logprobs": [p for _, p, _ in rows],
            "top_logprobs": [top or None for _, _, top in rows],
        } if rows else None  # fmt: skip
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": made}}
