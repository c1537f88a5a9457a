"""Many requests at once, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2
"""Requests taken from the caller, as a multiple of those in flight: so that none waits for him."""


class Loop:
    """A running event loop: what the caller does meanwhile keeps no deadline waiting."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="server teacher", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, B]) -> B:
        """The result of work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it on the loop."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """End the thread."""
        self.soon(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Flight(Generic[A, B]):
    """At most `width` answers in the making; they come as they are done.

    The first error stops the rest: nothing new begins, what is in flight ends and is given first,
    then the error is raised.
    """

    def __init__(
        self,
        loop: Loop,
        width: int,
        answer: Callable[[int, A], Awaitable[B]],
        stop: Callable[[], None],
    ) -> None:
        """`stop`: told when something has failed."""
        self.loop = loop
        self.width = width
        self.answer = answer
        self.stop = stop
        self._waiting: deque[tuple[int, A]] = deque()  # loop's thread only, as all below
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: list[asyncio.Task[None]] = []
        self._busy = 0
        self._done: list[tuple[int, B]] = []
        self._error: BaseException | None = None
        self._told: SimpleQueue[list[tuple[int, B]] | None] = SimpleQueue()  # None: look at _error

    def replies(self, requests: Iterable[A]) -> Iterator[list[tuple[int, B]]]:
        """Answers to the requests, which are taken as there is room for them."""
        numbered, pending, more = enumerate(requests), 0, True
        try:
            while True:
                new: list[tuple[int, A]] = []
                while more and pending + len(new) < AHEAD * self.width:
                    one = next(numbered, None)
                    more = one is not None
                    if one is not None:
                        new.append(one)
                if new:
                    pending += len(new)
                    self.loop.soon(self._feed, new)
                if not pending:
                    return
                done = self._told.get()
                if done is None:
                    assert self._error is not None
                    raise self._error
                pending -= len(done)
                yield done
        finally:
            self.loop.run(self._land())

    def _feed(self, new: list[tuple[int, A]]) -> None:
        self._waiting.extend(new)
        for _ in new:
            if self._idle:
                self._idle.popleft().set_result(None)
            elif len(self._workers) < self.width:
                self._workers.append(asyncio.get_running_loop().create_task(self._work()))
            else:
                return
            self._busy += 1

    async def _work(self) -> None:
        """One of `width`: answers what waits, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            while self._waiting and self._error is None:
                number, request = self._waiting.popleft()
                try:
                    answer = await self.answer(number, request)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # raised again by the caller's thread
                    if self._error is None:
                        self._error = error
                        self.stop()
                else:
                    if not self._done:
                        loop.call_soon(self._tell)
                    self._done.append((number, answer))
            self._busy -= 1
            if self._error is not None:
                if not self._busy:
                    self._tell()
                    self._told.put(None)
                return
            turn = loop.create_future()
            self._idle.append(turn)
            await turn

    def _tell(self) -> None:
        if self._done:
            self._told.put(self._done)
            self._done = []

    async def _land(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
