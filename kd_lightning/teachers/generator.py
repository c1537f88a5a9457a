"""Who speaks: one protocol for a local model, a server, a pool, the student, a record, a rule."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.types import Completion, Prompt, Sampling, Signal


class Kind(StrEnum):
    """What a request asks for."""

    GENERATE = "generate"
    SCORE = "score"
    CHOICES = "choices"
    FORWARD = "forward"
    """No request: the distributions themselves [white box]."""

    @property
    def needs(self) -> Signal:
        """What a generator must offer to answer it."""
        if self is Kind.FORWARD:
            return Signal.LOGITS
        return Signal.TEXT if self is Kind.GENERATE else Signal.LOGPROB


@dataclass(frozen=True)
class Request:
    """One thing asked of a generator."""

    kind: Kind
    """Answers, log-probabilities of given answers, or log-probabilities of options."""
    prompt: Prompt
    """What is answered."""
    sampling: Sampling = field(default_factory=Sampling)
    """generate: how."""
    n: int = 1
    """generate: how many answers."""
    texts: tuple[str, ...] = ()
    """score: the answers; choices: the options."""
    logprobs: bool = False
    """generate: whether log-probabilities of the answers' tokens are wanted."""

    def key(self, generator: str) -> str:
        """A name that only equal requests to the same generator (its `identity`) share."""
        told = json.dumps([generator, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class TokenLogprobs:
    """log p(y_t | prompt, y_<t) of one given answer."""

    tokens: tuple[str, ...]
    """The answer's tokens as the generator cuts them."""
    logprobs: tuple[float, ...]
    """Theirs, in nats, at temperature 1."""

    @property
    def total(self) -> float:
        """Log p(y | prompt)."""
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        """Per token; 0 of an empty answer."""
        return self.total / len(self.logprobs) if self.logprobs else 0.0


@dataclass(frozen=True)
class Usage:
    """What a reply took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    """In the currency of the price table."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
        )


@dataclass(frozen=True)
class Reply:
    """What a generator said to one request."""

    completions: tuple[Completion, ...] = ()
    """generate: `n` answers."""
    scores: tuple[TokenLogprobs, ...] = ()
    """score: one for each text."""
    choices: tuple[float, ...] = ()
    """choices: log p(option | prompt) of each, in nats, not normalised over the options."""
    usage: Usage = field(default_factory=Usage)
    """What it took."""
    by: str = ""
    """Name of the generator that answered, where a pool did."""
    sources: tuple[str, ...] = ()
    """The same for each of `completions`, where several generators gave them."""
    failure: str = ""
    """Why there is no answer to this request, while the generator goes on; the record falls."""

    def as_json(self) -> dict[str, Any]:
        """For a journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Reply:
        """The way back."""
        return cls(
            completions=tuple(
                Completion(c["text"], tuple(c["tokens"]), c["finished"], tuple(c["logprobs"]))
                for c in told["completions"]
            ),
            scores=tuple(
                TokenLogprobs(tuple(s["tokens"]), tuple(s["logprobs"])) for s in told["scores"]
            ),
            choices=tuple(told["choices"]),
            usage=Usage(**told["usage"]),
            by=told["by"],
            sources=tuple(told.get("sources", ())),
            failure=told["failure"],
        )


class GeneratorError(KDError):
    """A generator cannot go on at all: its key is refused, its address answers nothing."""


class BudgetError(GeneratorError):
    """A limit on requests, tokens or money is reached; what was answered is kept."""


class Generator(ABC):
    """Something that answers prompts.

    A subclass writes `replies`; what it cannot do is missing in `offers` and refused at set-up by
    whoever needs it (`require`).
    """

    offers: frozenset[Signal] = frozenset()
    """TEXT: generate; LOGPROB: score and choice_logprobs; LOGITS: a forward pass [white box]."""

    name: str = ""
    """How records, cards and messages call it."""

    licence: str | None = None
    """Terms of its outputs: an SPDX name, or a word with `no-train` in it; None: not known."""

    @property
    def identity(self) -> str:
        """What its answers are a function of, besides the request; part of the journal's keys."""
        return f"{type(self).__name__}:{self.name}"

    def ready(self) -> None:  # noqa: B027 (most need nothing beforehand)
        """Refuse now what `open` could only refuse later: a missing key, wrong limits."""

    def open(self) -> None:  # noqa: B027 (most have nothing to open)
        """Load or connect; a second call does nothing."""

    def charged(self, requests: int, usage: Usage) -> None:  # noqa: B027 (most have no budget)
        """Told of what was used before this process: it counts towards a budget."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of what `open` took."""

    @abstractmethod
    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        """Answer requests, in any order, as they are done: lists of (number, reply).

        Requests are taken one by one, as there is room for them. Every request is answered once,
        with a `failure` where it alone cannot be; `GeneratorError` ends the whole.
        """

    def require(self, kinds: Iterable[Kind], who: str) -> None:
        """Refuse at set-up what it cannot do; `who` asks."""
        for kind in sorted(set(kinds)):
            if kind.needs not in self.offers:
                raise KDError(
                    f"{who} needs {_WORDS[kind]}, which {type(self).__name__} "
                    f"{self.name or '(no name)'} does not give: bind {who} to another generator"
                )

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """All replies, in the order of the requests."""
        found: dict[int, Reply] = {}
        for done in self.replies(requests):
            found.update(done)
        return [found[i] for i in range(len(requests))]

    def generate(
        self, prompts: Sequence[Prompt], n: int = 1, sampling: Sampling | None = None
    ) -> list[list[Completion]]:
        """`n` answers to each prompt."""
        how = sampling or Sampling()
        asked = [Request(Kind.GENERATE, p, how, n) for p in prompts]
        return [list(_good(reply).completions) for reply in self.ask(asked)]

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[TokenLogprobs]:
        """Log p of one given answer to each prompt, token by token."""
        pairs = zip(prompts, completions, strict=True)
        asked = [Request(Kind.SCORE, p, texts=(c,)) for p, c in pairs]
        return [_good(reply).scores[0] for reply in self.ask(asked)]

    def choice_logprobs(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[tuple[float, ...]]:
        """Log p(option | prompt) for each option, in nats, not normalised over the options."""
        asked = [Request(Kind.CHOICES, p, texts=tuple(options)) for p in prompts]
        return [_good(reply).choices for reply in self.ask(asked)]


_WORDS = {
    Kind.GENERATE: "text",
    Kind.SCORE: "log-probabilities of given answers",
    Kind.CHOICES: "log-probabilities of options",
    Kind.FORWARD: "a forward pass (logits)",
}


def _good(reply: Reply) -> Reply:
    if reply.failure:
        raise GeneratorError(reply.failure)
    return reply
