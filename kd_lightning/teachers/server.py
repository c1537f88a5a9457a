"""A teacher behind an address: any server that speaks OpenAI's chat or completions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import GeneratorError, Kind, Reply, Request, Usage
from kd_lightning.teachers.remote.budget import Budget, Ledger
from kd_lightning.teachers.remote.calls import Caller, Patience
from kd_lightning.teachers.remote.flight import Flight, Loop
from kd_lightning.teachers.remote.pace import Pace
from kd_lightning.teachers.remote.prices import Prices, price_of
from kd_lightning.teachers.remote.probe import probe
from kd_lightning.teachers.remote.retries import Backoff
from kd_lightning.teachers.remote.speaker import Offer, RemoteSpeaker
from kd_lightning.teachers.remote.transport import (
    Transport,
    checked_url,
    checked_variable,
    key_of,
)
from kd_lightning.teachers.remote.wire import Asked, Choice
from kd_lightning.teachers.wording import Wording
from kd_lightning.types import Asking, Completion, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRAWN = frozenset({Signal.TEXT})
SCORED = frozenset({Signal.TEXT, Signal.LOGPROB})


class ServerTeacher(Teacher):
    """vLLM, SGLang, llama.cpp, `transformers serve`, or an API that is paid for.

    Log-probabilities are the server's own: those of given texts at temperature 1; those of drawn
    tokens at temperature 1 where the server tells them before it samples (vLLM, llama.cpp; SGLang
    where its environment says SGLANG_RETURN_ORIGINAL_LOGPROB=1).
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = None,
        licence: str | None = None,
        api: Literal["auto", "chat", "completions"] = "auto",
        logprobs: Literal["auto"] | bool = "auto",
        top_logprobs: int = 20,
        tokenizer_path: str | None = None,
        template: str = "auto",
        template_arguments: dict[str, Any] | None = None,
        concurrency: int = 16,
        connect_seconds: float = 10.0,
        exchange_seconds: float = 180.0,
        deadline_seconds: float = 600.0,
        retries: int = 5,
        backoff_seconds: float = 0.5,
        stop_after: int = 20,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        prices: str | dict[str, dict[str, float]] | None = None,
        length_field: str = "max_tokens",
        seeds: bool = True,
        several: bool = True,
        extra: dict[str, Any] | None = None,
        max_bytes: int = 64 * 2**20,
        allow_plain_http: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            url: Address with its version part, like http://127.0.0.1:8000/v1.
            model: As the server calls it.
            key_variable: Name of the environment variable that holds the key; None: no key.
            licence: Terms of its outputs; a word with `no-train` in it: nothing may be trained on
                them.
            api: chat: conversations; completions: texts, conversations rendered by the template of
                `tokenizer_path`; auto: each prompt to what fits it.
            logprobs: Whether it tells log-probabilities; auto: asked when it is opened (up to
                three requests of one token).
            top_logprobs: Likeliest tokens that options of a choice are looked for in.
            tokenizer_path: Folder or hub name of its tokenizer: texts to go on with and given texts
                are then sent as ids, cut and begun as a local teacher does. None: the server cuts
                them.
            template: With `tokenizer_path`, chat template: auto (its own), plain, or a jinja file.
            template_arguments: Further arguments for the template (`enable_thinking: false`).
            concurrency: Requests in flight.
            connect_seconds: The longest wait for a connection.
            exchange_seconds: The longest that one try may take, from connecting to the last byte.
            deadline_seconds: The longest that a request may take, with all tries and the waits
                between them.
            retries: Tries after the first, for what passes (status 408, 409, 429, 5xx, broken
                connections and answers); where the server asks to wait, that is no try.
            backoff_seconds: Wait before the first of them; it doubles, up to 30 s.
            stop_after: Requests in a row that may come to nothing before the whole stops.
            requests_per_minute: Sent at most; None: no limit.
            tokens_per_minute: Of prompts and answers, at most; None: no limit.
            budget: The most to be taken in all; None: no limit.
            prices: Per million tokens, `model: {in: 0.15, out: 0.6}`, or a YAML file of it.
            length_field: How it calls the longest answer (`max_completion_tokens` for some).
            seeds: Whether it takes `seed`.
            several: Whether one request may ask for several answers (`n`). false: one by one, each
                with its own seed, for servers that draw all with the same (SGLang).
            extra: Further fields of every request, for what a server does by default otherwise
                (`top_k: 0`).
            max_bytes: The longest answer that is read.
            allow_plain_http: Send the key over http:// to another machine.
        """
        self.key_variable = checked_variable(key_variable)
        self.url = checked_url(url, key_variable is not None, allow_plain_http)
        self.model = model
        self.name = model
        self.licence = licence
        self.api = api
        self.logprobs = logprobs
        self.top_logprobs = top_logprobs
        self.tokenizer_path = tokenizer_path
        self.template = template
        self.template_arguments = template_arguments
        self.concurrency = concurrency
        self.connect_seconds = connect_seconds
        self.exchange_seconds = exchange_seconds
        self.deadline_seconds = deadline_seconds
        self.retries = retries
        self.backoff_seconds = backoff_seconds
        self.stop_after = stop_after
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.budget = budget
        self.prices: Prices = prices
        self.length_field = length_field
        self.seeds = seeds
        self.several = several
        self.extra = extra
        self.max_bytes = max_bytes
        self.allow_plain_http = allow_plain_http
        self._ledger = Ledger(budget or Budget())
        self._loop: Loop | None = None
        self._speaker: RemoteSpeaker | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # ---------------------------------------------------------------- what it is
    @property
    def offers(self) -> frozenset[Signal]:  # type: ignore[override]
        """Text; log-probabilities where they were stated, or found when it was opened."""
        if self._speaker is not None:
            offer = self._speaker.offer
            return SCORED if offer.chat or offer.text or offer.echo else DRAWN
        return SCORED if self.logprobs is True else DRAWN

    @property
    def identity(self) -> str:
        told = {
            "extra": self.extra, "template": self.template, "arguments": self.template_arguments,
            "tokenizer": self.tokenizer_path, "seeds": self.seeds, "top": self.top_logprobs,
        }  # fmt: skip
        if not self.several:
            told["several"] = False
        named = json.dumps(told, sort_keys=True)
        return f"ServerTeacher:{self.url}:{self.model}:{self.api}:{named}"

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests sent, retries, failures, and statuses that were no success."""
        return Counter() if self._speaker is None else dict(self._speaker.caller.counts)

    @property
    def usage(self) -> Usage:
        """What was taken of the budget, in tokens and money."""
        return self._ledger.usage

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        if self._tokenizer is None and self.tokenizer_path is not None:
            self._tokenizer = loading.load_tokenizer(self.tokenizer_path)
        return self._tokenizer

    # ---------------------------------------------------------------- set-up
    def ready(self) -> None:
        self._check()
        price_of(self.model, self.prices)
        key_of(self.key_variable)

    def open(self) -> None:
        if self._loop is not None and self._loop.pid == os.getpid():
            return
        self._check()
        transport = Transport(self.url, self.key_variable, self.connect_seconds, self.max_bytes)
        patience = Patience(
            self.exchange_seconds, self.deadline_seconds, self.retries,
            Backoff(self.backoff_seconds),
        )  # fmt: skip
        pace = Pace(self.requests_per_minute, self.tokens_per_minute)
        caller = Caller(transport, self.model, self._ledger, pace, patience)
        asked = Asked(self.model, self.length_field, self.seeds, self.extra or {})
        words = None
        if self.tokenizer is not None:
            words = Wording(self.tokenizer, self.template, self.template_arguments)
        price = price_of(self.model, self.prices)
        speaker = RemoteSpeaker(
            caller, asked, self.api, price, self.top_logprobs, words, self.stop_after, self.several
        )
        if self.logprobs is True:
            speaker.offer = Offer(self.api != "completions", self.api != "chat", self.api != "chat")
        loop = Loop()
        try:
            loop.run(self._connected(speaker))
        except BaseException:
            loop.run(transport.close())
            loop.close()
            raise
        self._loop, self._speaker = loop, speaker

    async def _connected(self, speaker: RemoteSpeaker) -> None:
        await speaker.caller.transport.open()
        speaker.caller.begin()
        if self.logprobs == "auto":
            speaker.offer = await probe(speaker)

    def _check(self) -> None:
        (self.budget or Budget()).check(priced=self.prices is not None)
        least = {"concurrency": 1, "retries": 0, "stop_after": 1, "max_bytes": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise KDError(f"{name} must be {limit} or more, not {getattr(self, name)}")
        for name in ("connect_seconds", "exchange_seconds", "deadline_seconds"):
            if not getattr(self, name) > 0:
                raise KDError(f"{name} must be greater than 0, not {getattr(self, name)}")

    def close(self) -> None:
        if self._loop is not None and self._speaker is not None:
            if self._loop.pid == os.getpid():
                self._loop.run(self._speaker.caller.transport.close())
                self._loop.close()
            self._loop = self._speaker = None

    def materialize(self, device: torch.device) -> None:
        self.open()

    def charged(self, requests: int, usage: Usage) -> None:
        self._ledger.charge(requests, usage)

    def require(self, kinds: Iterable[Kind], who: str) -> None:
        wanted = set(kinds)
        if self.logprobs == "auto" and wanted - {Kind.GENERATE}:
            self.open()
        super().require(wanted, who)
        if self._speaker is not None and Kind.SCORE in wanted and not self._speaker.offer.echo:
            raise KDError(
                f"{who} needs log-probabilities of given answers, which {self.url} does not give "
                "(completions with `echo` and `logprobs`: vLLM, SGLang): bind it to another "
                "generator"
            )

    def check(self, loss: Asking) -> None:
        if self.logprobs == "auto" and Signal.LOGPROB in loss.needs:
            self.open()
        super().check(loss)

    # ---------------------------------------------------------------- speaking
    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        loop, speaker = self._opened()
        speaker.caller.begin()
        flight = Flight(loop, self.concurrency, speaker.reply, speaker.caller.stop)
        return flight.replies(requests)

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One answer for each prompt of ids, with the ids that the server tells.

        Where it tells none (vLLM and SGLang tell them with `extra: {return_token_ids: true}`), the
        text is cut anew by `tokenizer_path`, which may give others.
        """
        loop, speaker = self._opened()
        speaker.caller.begin()
        flight = Flight(loop, self.concurrency, speaker.complete, speaker.caller.stop)
        found: dict[int, Choice] = {}
        for done in flight.replies([(p, sampling) for p in prompts]):
            found.update(done)
        return [self._with_ids(found[i]) for i in range(len(prompts))]

    def _with_ids(self, choice: Choice) -> Completion:
        ids = choice.ids
        if not ids:
            if self.tokenizer is None:
                raise GeneratorError(
                    f"{self.model} tells no ids of its answers: write tokenizer_path, or for vLLM "
                    "and SGLang extra: {return_token_ids: true}"
                )
            ids = tuple(self.tokenizer.encode(choice.text, add_special_tokens=False))
            end = self.tokenizer.eos_token_id
            if choice.finished and isinstance(end, int):
                ids = (*ids, end)
        return Completion(choice.text, ids, choice.finished)

    def _opened(self) -> tuple[Loop, RemoteSpeaker]:
        self.open()
        assert self._loop is not None and self._speaker is not None
        return self._loop, self._speaker
