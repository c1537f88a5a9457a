"""A request as calls of a server, and their answers as a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import (
    GeneratorError,
    Kind,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
)
from kd_lightning.teachers.remote.budget import Cost
from kd_lightning.teachers.remote.calls import Caller
from kd_lightning.teachers.remote.failures import RequestError
from kd_lightning.teachers.remote.prices import Price
from kd_lightning.teachers.remote.texts import completion, picked, scored, stopped, tail
from kd_lightning.teachers.remote.wire import CHAT, COMPLETIONS, Asked, Choice, Said, read
from kd_lightning.teachers.wording import Wording
from kd_lightning.types import Prompt, Sampling

BYTES_PER_TOKEN = 3
"""Fewer than most texts have: a prompt's tokens are rather over- than underestimated."""


@dataclass(frozen=True)
class Offer:
    """What a server gives besides text."""

    chat: bool = False
    """Log-probabilities of what it says in chats."""
    text: bool = False
    """Of what it goes on with."""
    echo: bool = False
    """Of given texts."""
    blanks: bool = True
    """Whether its tokens keep the blanks before words. SGLang decodes each alone, and those of a
    SentencePiece tokenizer lose them: `A` and ` A` cannot be told apart."""


class Tab:
    """What one request has taken so far."""

    def __init__(self, price: Price) -> None:
        self._price = price
        self.usage = Usage()

    def add(self, said: Said, prompt: int) -> None:
        """One call's; `prompt`: its estimate, for servers that do not count."""
        given, made = said.prompt_tokens, said.completion_tokens
        if given is None:
            given = prompt
        if made is None:
            made = sum(len(c.pieces) or tokens_of(c.text) for c in said.choices)
        self.usage += Usage(given, made, self._price.of(given, made))


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN + 1


class RemoteSpeaker:
    """Answers requests by calls."""

    def __init__(
        self,
        caller: Caller,
        asked: Asked,
        api: str,
        price: Price,
        top: int,
        wording: Wording | None,
        stop_after: int,
        several: bool = True,
    ) -> None:
        """What it speaks with.

        Args:
            caller: Makes the calls.
            asked: What all calls share.
            api: chat, completions, or auto: texts to completions and conversations to chat.
            price: Of tokens.
            top: Likeliest tokens that options are looked for in.
            wording: Prompts and texts as ids; None: the server cuts them.
            stop_after: Requests in a row that may come to nothing.
            several: Whether one call may ask for several answers.
        """
        self.caller = caller
        self.asked = asked
        self.api = api
        self.price = price
        self.top = top
        self.wording = wording
        self.stop_after = stop_after
        self.offer = Offer()
        self._several = several  # until the server turns out to take no n
        self._fallen = 0  # requests in a row that came to nothing

    # ---------------------------------------------------------------- one request
    async def reply(self, number: int, request: Request) -> Reply:
        """Its reply; within the budget."""
        tab, ledger = Tab(self.price), self.caller.ledger
        try:
            cost = self.cost(request)
        except KDError as error:
            return self._fails(Reply(failure=str(error)))
        await ledger.admit(cost)
        try:
            if request.kind is Kind.GENERATE:
                said = await self._generate(request, tab, number)
                strip = not request.prompt.plain
                reply = Reply(completions=tuple(completion(c, strip) for c in said))
            elif request.kind is Kind.SCORE:
                reply = Reply(scores=await self._scores(request, tab, number))
            else:
                reply = Reply(choices=await self._choices(request, tab, number))
        except GeneratorError:
            raise
        except (RequestError, KDError) as error:
            return self._fails(Reply(failure=str(error), usage=tab.usage))
        finally:
            ledger.settle(cost, tab.usage)
        self._fallen = 0
        return replace(reply, usage=tab.usage)

    async def complete(self, number: int, job: tuple[Sequence[int], Sampling]) -> Choice:
        """One answer to a prompt of ids."""
        ids, how = job
        tab = Tab(self.price)
        cost = self._cost(1, len(ids), how.max_new_tokens)
        await self.caller.ledger.admit(cost)
        try:
            more: dict[str, Any] = {"logprobs": 1} if self.offer.text else {}
            body = self.asked.text(ids, how, **more)
            said = await self.call(COMPLETIONS, body, len(ids), tab, number)
        except RequestError as error:
            raise GeneratorError(f"{self.asked.model} does not answer ids: {error}") from None
        finally:
            self.caller.ledger.settle(cost, tab.usage)
        return said.choices[0]

    def cost(self, request: Request) -> Cost:
        """What it may take at most, by an estimate of its prompt."""
        prompt = sum(tokens_of(m.content) + 8 for m in request.prompt.messages)
        if request.kind is Kind.GENERATE:
            n = request.n if request.sampling.temperature > 0 else min(request.n, 1)
            calls = 1 if self._several else n
            made = n * request.sampling.max_new_tokens
            return self._cost(calls, prompt * calls, made)
        if request.kind is Kind.CHOICES and not self._scored(request):
            return self._cost(1, prompt, 1)
        given = sum(prompt + tokens_of(text) for text in request.texts)
        return self._cost(len(request.texts), given, len(request.texts))

    def _cost(self, calls: int, prompt: int, made: int) -> Cost:
        return Cost(calls, prompt + made, self.price.of(prompt, made))

    def _fails(self, reply: Reply) -> Reply:
        self.caller.counts["failures"] += 1
        self._fallen += 1
        if self._fallen >= self.stop_after and not self.caller.stopping:
            raise GeneratorError(
                f"{self._fallen} requests to {self.asked.model} in a row came to nothing, the "
                f"last: {reply.failure}; mend what it says, or raise stop_after"
            ) from None
        return reply

    async def call(
        self,
        path: str,
        body: dict[str, Any],
        prompt: int,
        tab: Tab,
        seed: int,
        retries: int | None = None,
    ) -> Said:
        """One call, written on the tab; `prompt`: its tokens, about."""
        expected = prompt + body.get("n", 1) * body.get(self.asked.length_field, 1)
        said = await self.caller.call(path, body, expected, seed, read, retries)
        before = tab.usage
        tab.add(said, prompt)
        spent = tab.usage.prompt_tokens + tab.usage.completion_tokens
        spent -= before.prompt_tokens + before.completion_tokens
        self.caller.pace.tokens.correct(spent - expected)
        return said

    # ---------------------------------------------------------------- answers
    def _chats(self, prompt: Prompt) -> bool:
        return self.api == "chat" or (self.api == "auto" and not prompt.plain)

    def _body(self, prompt: Prompt, how: Sampling, top: int = 0, **more: Any) -> dict[str, Any]:
        if self._chats(prompt):
            if top:
                more |= {"logprobs": True, "top_logprobs": top}
            return self.asked.chat(prompt.messages, how, **more)
        if top:
            more |= {"logprobs": top}
        if prompt.plain and self.wording is None:
            return self.asked.text(prompt.messages[0].content, how, **more)
        return self.asked.text(self._rendered(prompt), how, **more)

    def _rendered(self, prompt: Prompt) -> list[int]:
        if self.wording is None:
            raise GeneratorError(
                "a conversation as text needs the model's own template: write tokenizer_path, its "
                "folder or hub name"
            )
        return list(self.wording.prompt(prompt))

    async def _generate(self, request: Request, tab: Tab, seed: int) -> list[Choice]:
        prompt = request.prompt
        n = request.n if request.sampling.temperature > 0 else min(request.n, 1)
        path = CHAT if self._chats(prompt) else COMPLETIONS
        told = sum(tokens_of(m.content) for m in prompt.messages)
        found: list[Choice] = []
        while len(found) < n:
            how = replace(request.sampling, seed=request.sampling.seed + len(found))
            many = n > 1 and not found and self._several
            body = self._body(prompt, how, int(request.logprobs), **({"n": n} if many else {}))
            try:
                said = await self.call(path, body, told, tab, seed)
            except RequestError as error:
                if not many or error.status not in (400, 422):
                    raise
                self._several = False  # it takes no n: one by one
                continue
            found += said.choices
            if request.logprobs and not all(c.pieces or not c.text for c in said.choices):
                raise GeneratorError(
                    f"{self.asked.model} gives no log-probabilities of its answers: ask without "
                    "them, or choose a server or api that gives them"
                )
        answers = [stopped(c, request.sampling.stop) for c in found[:n]]
        return answers * request.n if n < request.n else answers  # greedy ones are the same

    # ---------------------------------------------------------------- given texts
    async def _scores(self, request: Request, tab: Tab, seed: int) -> tuple[TokenLogprobs, ...]:
        if not self.offer.echo:
            raise GeneratorError(
                f"{self.asked.model} gives no log-probabilities of given texts: choose a server "
                "whose completions take `echo` with `logprobs` (vLLM, SGLang)"
            )
        return tuple([await self._score(request.prompt, t, tab, seed) for t in request.texts])

    async def _score(self, prompt: Prompt, text: str, tab: Tab, seed: int) -> TokenLogprobs:
        how = Sampling(max_new_tokens=1, temperature=1.0)
        more = {"echo": True, "logprobs": 1}
        if self.wording is not None:
            before, given = self.wording.prompt(prompt), self.wording.answer(prompt, text)
            body = self.asked.text([*before, *given], how, **more)
            said = await self.call(COMPLETIONS, body, len(before) + len(given), tab, seed)
            pieces = said.choices[0].pieces[len(before) : len(before) + len(given)]
            if len(pieces) < len(given):
                raise RequestError("the echo is shorter than what was given")
            return scored(pieces)
        if not prompt.plain:
            self._rendered(prompt)
        whole = prompt.messages[0].content + text
        said = await self.call(
            COMPLETIONS, self.asked.text(whole, how, **more), tokens_of(whole), tab, seed
        )
        made = 1 if said.completion_tokens is None else said.completion_tokens
        return scored(tail(said.choices[0].pieces, text, made))

    def _scored(self, request: Request) -> bool:
        """Whether options are scored one by one, and not read off the next token's."""
        words, prompt = self.wording, request.prompt
        single = words is None or all(len(words.answer(prompt, t)) == 1 for t in request.texts)
        seen = self.offer.chat if self._chats(request.prompt) else self.offer.text
        return not (single and seen and self.offer.blanks)

    async def _choices(self, request: Request, tab: Tab, seed: int) -> tuple[float, ...]:
        if self._scored(request):
            return tuple(s.total for s in await self._scores(request, tab, seed))
        path = CHAT if self._chats(request.prompt) else COMPLETIONS
        how = Sampling(max_new_tokens=1, temperature=1.0)
        told = sum(tokens_of(m.content) for m in request.prompt.messages)
        said = await self.call(path, self._body(request.prompt, how, self.top), told, tab, seed)
        if not said.choices[0].pieces:
            raise RequestError("the answer holds no log-probabilities")
        drawn, top = said.choices[0], said.choices[0].pieces[0].top
        if drawn.text != drawn.pieces[0].text == drawn.text.strip():
            self.offer = replace(self.offer, blanks=False)
            return tuple(s.total for s in await self._scores(request, tab, seed))
        if self.offer.echo and not all(option in top for option in request.texts):
            return tuple(s.total for s in await self._scores(request, tab, seed))
        return picked(top, request.texts)
