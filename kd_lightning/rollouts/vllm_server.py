"""Answers drawn by a vLLM server."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.served import ServedEngine, Told, checked, seed_of
from kd_lightning.teachers.generator import GeneratorError
from kd_lightning.teachers.remote.budget import Budget, Ledger
from kd_lightning.teachers.remote.calls import Caller, Patience, message
from kd_lightning.teachers.remote.failures import ExchangeError, RequestError
from kd_lightning.teachers.remote.flight import Flight, Loop
from kd_lightning.teachers.remote.pace import Pace
from kd_lightning.teachers.remote.retries import Backoff
from kd_lightning.teachers.remote.transport import Transport, checked_url, checked_variable
from kd_lightning.teachers.remote.wire import COMPLETIONS, Choice, read

MAX_BYTES = 64 * 2**20


class VLLMServer(ServedEngine):
    """A vLLM server draws: tokens in, tokens and log-probabilities out.

    Start it in development mode on the student's folder, on a machine that sees the run's folder:
    `VLLM_SERVER_DEV_MODE=1 vllm serve runs/student --served-model-name student --generation-config
    vllm` (without the last, penalties of the student's generation settings bend what it draws from,
    and not what it tells). It is told of new weights by `/pause`, `/collective_rpc`
    (`reload_weights`), `/reset_prefix_cache` and `/resume`. Development mode lets everybody who
    reaches the port run methods of the server, with or without its key: keep it on a network of
    your own.

    Source: Kwon et al. 2023 (vLLM), arXiv 2309.06180; its reference of the OpenAI-compatible
    server and of the development endpoints.
    """

    def __init__(
        self,
        url: str,
        model: str = "student",
        logprobs: Told = "engine",
        key_variable: str | None = None,
        allow_plain_http: bool = False,
        concurrency: int = 256,
        connect_seconds: float = 10.0,
        exchange_seconds: float = 600.0,
        reload_seconds: float = 600.0,
        retries: int = 3,
    ) -> None:
        """Store the settings.

        Args:
            url: Address with its version part, like http://127.0.0.1:8000/v1.
            model: As the server calls it (--served-model-name).
            logprobs: Whose are the answers' behaviour: engine, as the server tells them (at
                temperature 1, its `logprobs_mode` raw_logprobs); student, a forward pass of the
                student, which is exact where its weights are the server's.
            key_variable: Name of the environment variable that holds the key; None: no key.
            allow_plain_http: Send the key over http:// to another machine.
            concurrency: Requests in flight, of one process.
            connect_seconds: The longest wait for a connection.
            exchange_seconds: The longest that an answer may take.
            reload_seconds: The longest that taking over weights may take.
            retries: Tries after the first, for what passes.
        """
        super().__init__(logprobs)
        self.key_variable = checked_variable(key_variable)
        self.url = checked_url(url, key_variable is not None, allow_plain_http)
        self.model = model
        self.allow_plain_http = allow_plain_http
        self.concurrency = concurrency
        self.connect_seconds = connect_seconds
        self.exchange_seconds = exchange_seconds
        self.reload_seconds = reload_seconds
        self.retries = retries
        self._loop: Loop | None = None
        self._caller: Caller | None = None
        if concurrency < 1 or retries < 0:
            raise KDError(
                f"concurrency must be at least 1 and retries at least 0, not {concurrency} and "
                f"{retries}"
            )

    def drawn(self, requests: Sequence[Draw], ends: list[int]) -> list[Drawn]:
        loop, caller = self._opened()
        caller.begin()

        async def one(place: int, draw: Draw) -> Choice:
            seed = seed_of(draw)
            tokens = len(draw.prompt) + draw.room
            try:
                return await caller.call(COMPLETIONS, self.body(draw, ends), tokens, seed, _choice)
            except RequestError as error:
                raise GeneratorError(f"{self.url} draws no answer: {error}") from None

        found: dict[int, Choice] = {}
        for done in Flight(loop, self.concurrency, one, caller.stop).replies(requests):
            found.update(done)
        return [self._drawn(found[i], ends) for i in range(len(requests))]

    def body(self, draw: Draw, ends: list[int]) -> dict[str, Any]:
        """The request for one answer."""
        how = draw.sampling
        return {
            "model": self.model,
            "prompt": list(draw.prompt),
            "max_tokens": draw.room,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "seed": seed_of(draw),
            "stop_token_ids": ends,
            "logprobs": 1,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }

    def _drawn(self, choice: Choice, ends: list[int]) -> Drawn:
        told = [piece.logprob or 0.0 for piece in choice.pieces]
        return checked(choice.ids, told, not choice.finished, ends, self.url)

    # ---- weights ------------------------------------------------------------------------------

    def load(self, folder: Path) -> None:
        """Between two drawings: what is cached of prompts belongs to the weights before.

        Where it fails the server stays paused, so that it answers nobody with half of them.
        """
        loop, _ = self._opened()
        path = str(folder.resolve())
        loop.run(self._told("/pause?mode=wait"))
        reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        try:
            loop.run(self._told("/collective_rpc", reload))
        except GeneratorError as error:
            raise GeneratorError(
                f"{error}; it has no whole weights now: let its machine see {path}, and start it "
                "again on a model like the student"
            ) from None
        if loop.run(self._told("/reset_prefix_cache")).get("success") is False:
            raise GeneratorError(
                f"{self.url} keeps what it cached of prompts with the weights before (success: "
                "false of /reset_prefix_cache): start it with --no-enable-prefix-caching"
            )
        loop.run(self._told("/resume"))

    async def _told(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self._caller is not None
        transport = self._caller.transport
        admin = Transport(
            self.url.removesuffix("/v1"), self.key_variable, self.connect_seconds, MAX_BYTES
        )
        await admin.open()
        try:
            data = json.dumps(body or {}).encode()
            answer = await admin.exchange(path, data, self.reload_seconds)
            told = answer.json() if answer.status == 200 and answer.body else {}
        except (ExchangeError, RequestError) as error:
            raise GeneratorError(
                f"{self.url} does not take new weights ({path}): {error}"
            ) from None
        finally:
            await admin.close()
        if answer.status == 404:
            raise GeneratorError(
                f"{self.url} does not know {path}: start vLLM (0.14 or later) with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        if answer.status != 200:
            why = transport.clean(message(answer))
            raise GeneratorError(
                f"{self.url} does not take new weights ({path}, status {answer.status}): {why}"
            )
        return told

    def close(self) -> None:
        if self._loop is not None and self._caller is not None and self._loop.pid == os.getpid():
            self._loop.run(self._caller.transport.close())
            self._loop.close()
        self._loop = self._caller = None

    def _opened(self) -> tuple[Loop, Caller]:
        if self._loop is None or self._caller is None:
            transport = Transport(self.url, self.key_variable, self.connect_seconds, MAX_BYTES)
            patience = Patience(
                self.exchange_seconds, (1 + self.retries) * self.exchange_seconds, self.retries,
                Backoff(),
            )  # fmt: skip
            caller = Caller(transport, self.model, Ledger(Budget()), Pace(None, None), patience)
            loop = Loop()
            loop.run(transport.open())
            caller.begin()
            self._loop, self._caller = loop, caller
        return self._loop, self._caller


def _choice(told: Any) -> Choice:
    """The one answer; what was broken off is asked again."""
    choice = read(told).choices[0]
    if not choice.ids or not choice.pieces:
        raise RequestError(
            "the server tells no token ids or no log-probabilities (return_token_ids, logprobs): "
            "vLLM 0.11 or later does"
        )
    return choice
