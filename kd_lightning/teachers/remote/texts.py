"""From a server's tokens to answers, scores and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kd_lightning.teachers.generator import TokenLogprobs
from kd_lightning.teachers.remote.failures import RequestError
from kd_lightning.teachers.remote.wire import Choice, Piece
from kd_lightning.types import Completion

FAINT = 0.01
"""Share of the best option below which another's exact probability decides nothing."""


def picked(top: Mapping[str, float], options: Sequence[str]) -> tuple[float, ...]:
    """Log p of options that are one token each, out of the likeliest tokens.

    One that is not among them gets the most that it can have: the last one's, and what the listed
    ones leave. Where that is not `FAINT` beside the best option, there is no answer.
    """
    if not any(option in top for option in options):
        raise RequestError(f"none of the options is among the {len(top)} likeliest tokens")
    for option in options:
        starts = [o for o in options if o != option and o and option.startswith(o)]
        if option not in top and starts:
            raise RequestError(
                f"option {option!r} is more than one token and begins like {starts[0]!r}: choose "
                "options of one token each, or write tokenizer_path"
            )
    left = max(1.0 - sum(map(math.exp, top.values())), 1e-9)
    most = min(*top.values(), math.log(left))
    best = max(top[option] for option in options if option in top)
    for option in options:
        if option not in top and most > best + math.log(FAINT):
            raise RequestError(
                f"option {option!r} is not among the {len(top)} likeliest tokens, and may not be "
                "far behind: raise top_logprobs where the server allows it"
            )
    return tuple(top.get(option, most) for option in options)


def tail(pieces: Sequence[Piece], text: str, made: int) -> Sequence[Piece]:
    """The tokens of the text at the end of an echo, before `made` new ones.

    A token that begins in the prompt and ends in the text counts as the text's.
    """
    end = len(pieces) - made
    start, seen = end, ""
    while start > 0 and len(seen) < len(text):
        start -= 1
        seen = pieces[start].text + seen
    if not seen.endswith(text):
        raise RequestError(
            "the echoed tokens do not end with the given text: write tokenizer_path, so that ids "
            "are sent in place of text"
        )
    return pieces[start:end]


def scored(pieces: Sequence[Piece]) -> TokenLogprobs:
    """Log-probabilities of a given text's tokens."""
    if any(p.logprob is None for p in pieces):
        raise RequestError("a text without anything before it has no log-probability")
    return TokenLogprobs(
        tuple(p.text for p in pieces),
        tuple(math.nan if p.logprob is None else p.logprob for p in pieces),
    )


def stopped(choice: Choice, stops: Sequence[str]) -> Choice:
    """Without the stop text, which some servers leave at the end."""
    places = [at for stop in stops if stop and (at := choice.text.find(stop)) >= 0]
    if not places:
        return choice
    return replace(choice, text=choice.text[: min(places)], finished=True)


def completion(choice: Choice, strip: bool) -> Completion:
    """An answer as all generators give it; `strip`: without white space around it."""
    given = tuple(p.logprob for p in choice.pieces if p.logprob is not None)
    text = choice.text.strip() if strip else choice.text
    return Completion(text, choice.ids, choice.finished, given)
