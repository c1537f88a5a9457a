"""Answers with their rewards, as they stand in preference data sets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd_lightning.data.conversations import messages_of
from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError
from kd_lightning.types import Message

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_TEXT = ("response", "answer", "text", "output", "completion", "solution")
_SCORE = ("score", "overall_score", "rating", "reward", "is_correct", "label")


@dataclass(frozen=True)
class Judged:
    """Answers to one prompt, each with a reward."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    rewards: tuple[float, ...]


def pair(row: Row) -> Judged:
    """`chosen` and `rejected`: texts, turns, whole conversations or transcripts (HH)."""
    begun = prompt_of(row) if "prompt" in row else None
    found = [_ended(row, field, begun) for field in ("chosen", "rejected")]
    (prompt, better), (other, worse) = found
    if prompt != other:
        raise KDError(f"{row.place}: 'chosen' and 'rejected' do not answer the same prompt")
    if better == worse:
        raise KDError(f"{row.place}: 'chosen' and 'rejected' are the same text")
    rewards = tuple(
        reward(row.get(f"{name}_score", usual), row.place)
        for name, usual in (("chosen", 1.0), ("rejected", 0.0))
    )
    if not rewards[0] > rewards[1]:
        raise KDError(f"{row.place}: a tie is no pair: 'chosen' needs the higher score")
    return Judged(prompt, (better, worse), rewards)


def listed(row: Row) -> Judged:
    """`candidates` with `scores`, or objects that hold a text and a score each."""
    texts = row["candidates"]
    if not isinstance(texts, list | tuple) or not texts:
        raise KDError(f"{row.place}: 'candidates' must be a list of answers")
    scores = row.get("scores")
    if scores is None:
        scores = [_part(text, _SCORE) for text in texts]
    if not isinstance(scores, list | tuple) or len(scores) != len(texts):
        raise KDError(f"{row.place}: 'scores' must be a list, one number for each candidate")
    return several(row, texts, scores)


def several(row: Row, texts: Sequence[Any], scores: Sequence[Any]) -> Judged:
    """Answers and scores; an answer without a score is left out."""
    kept = [(said(t, row.place), reward(s, row.place)) for t, s in _scored(texts, scores)]
    if len(kept) < 2:
        raise KDError(f"{row.place}: two or more answers with a score each are needed")
    return Judged(prompt_of(row), tuple(t for t, _ in kept), tuple(s for _, s in kept))


def single(row: Row) -> Judged:
    """`answer` with `label` (true: good, false: bad) or a score."""
    answer = said(row["answer"], row.place)
    return Judged(prompt_of(row), (answer,), (reward(row["label"], row.place),))


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The turns before the answer: a text, or a list of them."""
    told = row["prompt"]
    if isinstance(told, str):
        extra = row.text("input", default="")
        text = f"{told}\n\n{extra}" if extra else told
        return transcript(told) or (Message("user", text),)
    turns = messages_of(row, "prompt")
    if turns[-1].role == "assistant":
        raise KDError(f"{row.place}: the prompt ends with the assistant's turn: leave that out")
    return turns


def transcript(text: str) -> tuple[Message, ...]:
    """Turns of `Human:` and `Assistant:`, each after an empty line; (): it is none."""
    cuts = _TURN.split(text)
    if len(cuts) < 3 or cuts[0].strip():
        return ()
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(cuts[1::2], cuts[2::2], strict=True)
    return tuple(Message(roles[role], words.strip()) for role, words in pairs)


def said(value: Any, place: str) -> str:
    """An answer's text: itself, or that of a turn or an object."""
    found = value if isinstance(value, str) else _part(value, ("content", "value", *_TEXT))
    if not isinstance(found, str) or not found:
        raise KDError(f"{place}: an answer must be a text (or an object with one), not {value!r}")
    return found


def reward(value: Any, place: str) -> float:
    """A score as a number; true is 1, false 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise KDError(f"{place}: a score must be a number, not {value!r}")
    return number


def _scored(texts: Sequence[Any], scores: Sequence[Any]) -> list[tuple[Any, Any]]:
    pairs = zip(texts, scores, strict=True)
    return [(t, s) for t, s in pairs if s is not None and not (isinstance(s, float) and s != s)]


def _ended(
    row: Row, field: str, begun: tuple[Message, ...] | None
) -> tuple[tuple[Message, ...], str]:
    """A prompt and the answer to it."""
    value = row[field]
    turns: tuple[Message, ...] = ()
    if isinstance(value, list | tuple):
        turns = messages_of(row, field)
    elif isinstance(value, str) and begun is None:
        turns = transcript(value)
        if not turns:
            raise KDError(f"{row.place}: {field!r} is an answer without a prompt: name its column")
    if not turns:
        assert begun is not None or not isinstance(value, str)
        if begun is None:
            raise KDError(f"{row.place}: the row has no 'prompt'")
        return begun, said(value, row.place)
    if turns[-1].role != "assistant" or not turns[-1].content:
        raise KDError(f"{row.place}: {field!r} does not end with an answer of the assistant")
    if begun is not None and len(turns) == 1:
        return begun, turns[-1].content
    if len(turns) == 1:
        raise KDError(f"{row.place}: {field!r} is an answer without a prompt: name its column")
    return turns[:-1], turns[-1].content


def _part(value: Any, names: Sequence[str]) -> Any:
    """The first of these that an object has."""
    if not isinstance(value, Mapping):
        return None
    return next((value[name] for name in names if value.get(name) is not None), None)
