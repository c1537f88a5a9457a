"""One call of a server until it is answered: paced, tried again, counted, and given up in time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, TypeVar

from kd_lightning.teachers.generator import GeneratorError
from kd_lightning.teachers.remote.budget import Ledger
from kd_lightning.teachers.remote.failures import ExchangeError, MissingError, RequestError
from kd_lightning.teachers.remote.pace import Pace
from kd_lightning.teachers.remote.retries import AGAIN, BUSY, Backoff, asked_wait
from kd_lightning.teachers.remote.transport import Answer, Transport

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a call may take and how often it is tried."""

    exchange: float
    """Seconds of one try: connect, send, and the whole answer."""
    deadline: float
    """Seconds of the call, with all tries and the waits between them."""
    retries: int
    """Tries after the first; being asked to wait counts as none."""
    backoff: Backoff
    """Waits between them."""


class Caller:
    """Calls one server, for all who ask at the same time (on one event loop)."""

    def __init__(
        self, transport: Transport, model: str, ledger: Ledger, pace: Pace, patience: Patience
    ) -> None:
        self.transport = transport
        self.model = model
        self.ledger = ledger
        self.pace = pace
        self.patience = patience
        self.counts: Counter[str] = Counter()
        self._good = 0  # answers so far: whether the server lives at all
        self._end: asyncio.Event | None = None

    def begin(self) -> None:
        """Calls may be made (again)."""
        self._end = asyncio.Event()

    def stop(self) -> None:
        """No further try is made; those in flight may end."""
        if self._end is not None:
            self._end.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._end is not None and self._end.is_set()

    async def call(
        self,
        path: str,
        body: dict[str, Any],
        tokens: int,
        seed: int,
        read: Callable[[Any], T],
        retries: int | None = None,
    ) -> T:
        """What `read` makes of the answer; it raises ExchangeError where the answer is no good."""
        data = json.dumps(body).encode()
        clock = asyncio.get_running_loop().time
        patience, before = self.patience, self._good
        left, end = patience.retries if retries is None else retries, 0.0
        for attempt in count():
            await self._turn(tokens, clock)
            end = end or clock() + patience.deadline
            self.ledger.send()
            self.counts["requests"] += 1
            try:
                seconds = max(min(patience.exchange, end - clock()), 0.001)
                answer = await self.transport.exchange(path, data, seconds)
                if answer.status != 200:
                    await self._refused(answer)
                told = read(answer.json())
            except ExchangeError as error:
                left -= error.counts
                rng = Random(1_000_003 * seed + attempt)
                wait = max(patience.backoff.seconds(attempt, rng), error.wait or 0.0)
                late = clock() + wait >= end
                if left < 0 or late or self.stopping:
                    raise self._given_up(error, attempt + 1, late, before) from None
                self.counts["retries"] += 1
                if error.wait is not None:
                    self.pace.hold(clock() + error.wait)
                await self._sleep(wait)
            except RequestError as error:
                raise RequestError(self.transport.clean(str(error)), error.status) from None
            else:
                self._good += 1
                return told
        raise AssertionError("unreachable")

    async def _turn(self, tokens: int, clock: Callable[[], float]) -> None:
        wait = self.pace.take(tokens, clock())
        while wait > 0:
            await self._sleep(wait)
            wait = self.pace.held(clock())
        if self.stopping:
            raise GeneratorError("stopped, since another request failed for good")

    async def _sleep(self, seconds: float) -> None:
        assert self._end is not None, "begin first"
        try:
            async with asyncio.timeout(seconds):
                await self._end.wait()
        except TimeoutError:
            return

    def _given_up(
        self, error: ExchangeError, tries: int, late: bool, before: int
    ) -> GeneratorError | RequestError:
        if self.stopping:
            return GeneratorError("stopped, since another request failed for good")
        why = f"{self.transport.clean(str(error))} ({tries} {'try' if tries == 1 else 'tries'})"
        if not error.reached and self._good == before:
            return GeneratorError(
                f"{self.transport.url} cannot be reached: {why}; start the server or write another "
                "url"
            )
        if late and error.wait is not None and error.wait >= self.patience.deadline:
            return GeneratorError(
                f"{self.transport.url} asks to come again in {error.wait:.0f} s, after the "
                f"deadline of {self.patience.deadline:g} s: run the same command again then, what "
                "was answered is kept"
            )
        return RequestError(why)

    async def _refused(self, answer: Answer) -> None:
        """Raise what the status calls for."""
        status, variable = answer.status, self.transport.key_variable
        told = self.transport.clean(message(answer))
        self.counts[f"status {status}"] += 1
        where = self.transport.url
        if status in (401, 403):
            what = f"the key in {variable}" if variable else "a request without a key"
            advice = "export another key" if variable else "write key_variable"
            raise GeneratorError(f"{where} refuses {what} (status {status}): {advice}; {told}")
        if status == 402 or (status == 429 and "insufficient_quota" in told):
            raise GeneratorError(f"{where} wants to be paid first (status {status}): {told}")
        if 300 <= status < 400:
            raise GeneratorError(
                f"{where} sends elsewhere (status {status}), which is not followed, so that a key "
                "goes nowhere else: write the server's own address as url"
            )
        if status == 404:
            raise await self._missing(told)
        why = f"status {status}: {told}"
        if status in AGAIN:
            raise ExchangeError(why, wait=asked_wait(answer.headers), counts=status not in BUSY)
        raise RequestError(why, status)

    async def _missing(self, told: str) -> MissingError:
        names = ", ".join(await self.models()) or "does not say which models it has"
        return MissingError(
            f"{self.transport.url} does not know the model {self.model!r} or the address (status "
            f"404): its models: {names}; {told}"
        )

    async def models(self) -> list[str]:
        """Names of the models that the server lists; none where it does not answer."""
        try:
            answer = await self.transport.exchange("/models", None, self.patience.exchange)
            listed = answer.json().get("data") if answer.status == 200 else None
        except (ExchangeError, RequestError):
            return []
        rows = listed if isinstance(listed, list) else []
        found = [row.get("id") for row in rows if isinstance(row, dict)]
        return [self.transport.clean(str(name)) for name in found if name is not None][:50]


def message(answer: Answer) -> str:
    """The server's own words about an error."""
    try:
        told: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        return answer.body[:1000].decode("utf-8", "replace")
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        words = [error.get(k) for k in ("message", "detail", "code") if error.get(k)]
        return "; ".join(map(str, words)) or str(error)
    return str(error)
