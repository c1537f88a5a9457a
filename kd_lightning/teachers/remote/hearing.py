"""What a server says when it is tried: an answer with its log-probabilities, told twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import TokenLogprobs
from kd_lightning.teachers.remote.failures import RequestError
from kd_lightning.teachers.remote.speaker import RemoteSpeaker, Tab, tokens_of
from kd_lightning.teachers.remote.wire import CHAT, COMPLETIONS, Choice, Piece
from kd_lightning.types import Prompt, Sampling

if TYPE_CHECKING:
    from kd_lightning.teachers.server import ServerTeacher

HOW = Sampling(max_new_tokens=16)
"""Greedy, so that each token must be the likeliest of its own list."""


@dataclass(frozen=True)
class Heard:
    """A server's word on one prompt."""

    models: tuple[str, ...]
    """What it lists; (): it lists none."""
    prompt: Prompt
    """What it was asked."""
    answer: Choice
    """What it said, greedily, with the likeliest tokens where it tells them."""
    scored: TokenLogprobs | None
    """The same answer as a given text; None: it scores none."""
    unscored: str
    """Why not, where it was tried; else ''."""
    top: int
    """Likeliest tokens that it was asked for in the end."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The answer's tokens with log-probabilities."""
        return tuple(p for p in self.answer.pieces if p.logprob is not None)

    @property
    def blanks(self) -> bool:
        """Whether its tokens keep the blanks of its text (see `Offer`)."""
        told = "".join(p.text for p in self.answer.pieces)
        return " " in told or " " not in self.answer.text.strip()


def hear(server: ServerTeacher, prompt: Prompt, seconds: float) -> Heard:
    """Ask for one greedy answer, and for the same answer's log-probabilities as a given text.

    Args:
        server: Left as it is: a copy is opened, with one retry (its budget is charged).
        prompt: Asked as it stands where the server answers conversations or the template is known
            here, else its last words as a text.
        seconds: The longest that a request may take.

    Raises:
        KDError: It does not answer.
    """
    tried = copy.copy(server)
    tried._loop = tried._speaker = None
    tried.retries, tried.backoff_seconds = min(server.retries, 1), min(server.backoff_seconds, 0.5)
    tried.connect_seconds = min(server.connect_seconds, seconds)
    tried.exchange_seconds = min(server.exchange_seconds, seconds)
    tried.deadline_seconds = min(server.deadline_seconds, 2 * seconds)
    try:
        loop, speaker = tried._opened()
        speaker.caller.begin()
        return loop.run(_heard(speaker, prompt))
    except RequestError as error:
        raise KDError(f"{server.url} does not answer {server.model}: {error}") from None
    finally:
        tried.close()


async def _heard(speaker: RemoteSpeaker, prompt: Prompt) -> Heard:
    tells = speaker.offer.chat if speaker._chats(prompt) else speaker.offer.text
    scores = speaker.offer.echo and speaker.offer.text
    if not prompt.plain and speaker.wording is None and (scores or speaker.api == "completions"):
        # its own template is unknown here: a text is what can be scored as well
        prompt, tells = Prompt.text(prompt.messages[-1].content), speaker.offer.text
    tab = Tab(speaker.price)
    answer, top = await _answer(speaker, prompt, speaker.top if tells else 0, tab)
    scored, unscored = None, ""
    if speaker.offer.echo and answer.pieces:
        try:
            scored = await speaker._score(prompt, answer.text, tab, 0)
        except (RequestError, KDError) as error:
            unscored = str(error)
    speaker.caller.ledger.charge(0, tab.usage)
    return Heard(tuple(await speaker.caller.models()), prompt, answer, scored, unscored, top)


async def _answer(speaker: RemoteSpeaker, prompt: Prompt, top: int, tab: Tab) -> tuple[Choice, int]:
    """The answer with as many likeliest tokens as the server allows."""
    path = CHAT if speaker._chats(prompt) else COMPLETIONS
    about = sum(tokens_of(m.content) for m in prompt.messages)
    fewer = [n for n in (5, 1) if n < top]
    for allowed in (top, *fewer):
        try:
            body = speaker._body(prompt, HOW, allowed)
            return (await speaker.call(path, body, about, tab, 0)).choices[0], allowed
        except RequestError as error:
            if error.status not in (400, 422) or allowed in (0, 1):
                raise
    raise AssertionError("unreachable")


def beside(pieces: Sequence[Piece], told: TokenLogprobs) -> list[float] | None:
    """Differences of an answer's log-probabilities from other ones of it, token by token.

    None: they are not cut into the same tokens. What ends the answer is in the drawn ones alone.
    """
    drawn = [p.logprob for p in pieces if p.logprob is not None]
    given = told.logprobs
    if len(drawn) == len(given) + 1:
        drawn = drawn[:-1]
    if len(drawn) != len(given):
        return None
    return [a - b for a, b in zip(drawn, given, strict=True)]
