"""A server that speaks OpenAI's words, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

PHRASES = {200: "OK", 302: "Found", 400: "Bad Request", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Act:
    """What the server does with one request."""

    status: int = 200
    body: Any = None
    """Bytes as they are, or an object to be written as JSON; None: the usual answer."""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    """Seconds before anything is sent."""
    drip: float = 0.0
    """Seconds between the bytes of the body."""
    cut: bool = False
    """Close the connection in the middle of the body."""
    chunked: bool = False
    """Say no length before the body."""


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Play = Callable[[int, Seen], Act]
"""(number of the request, the request) -> what to do."""


def words(body: dict[str, Any]) -> str:
    """What was asked, as one text."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body["prompt"])


def usual(seen: Seen) -> dict[str, Any]:
    """An answer without fault: the prompt's words again, in upper case."""
    text = words(seen.body).upper()
    told = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        if "messages" in seen.body
        else {"index": i, "finish_reason": "stop", "text": text}
        for i in range(seen.body.get("n", 1))
    ]
    return {
        "choices": told,
        "usage": {"prompt_tokens": 10, "completion_tokens": 2 * len(told), "total_tokens": 12},
    }


class Server:
    """On loopback, in a thread of its own."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.seen: list[Seen] = []
        self.most = 0
        """The most requests that were open at once."""
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split(" ")[1]
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:] if h)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(path, headers, json.loads(raw) if raw else {})
        self.seen.append(seen)
        act = self.play(len(self.seen) - 1, seen)
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            await asyncio.sleep(act.after)
            await self._say(seen, act, writer)
        finally:
            self._open -= 1
        return not act.cut

    async def _say(self, seen: Seen, act: Act, writer: asyncio.StreamWriter) -> None:
        body = usual(seen) if act.body is None else act.body
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        length = {} if act.chunked else {"Content-Length": str(len(raw))}
        coding = {"Transfer-Encoding": "chunked"} if act.chunked else {}
        lines = {"Content-Type": "application/json", **length, **coding, **act.headers}
        head = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        writer.write(f"HTTP/1.1 {act.status} {PHRASES.get(act.status, 'X')}\r\n{head}\r\n".encode())
        if act.cut:
            writer.write(raw[: len(raw) // 2])
            await writer.drain()
        elif act.drip:
            for i in range(len(raw)):
                writer.write(raw[i : i + 1])
                await writer.drain()
                await asyncio.sleep(act.drip)
        elif act.chunked:
            for i in range(0, len(raw), 65536):
                part = raw[i : i + 65536]
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(raw)
        await writer.drain()


async def _end(server: Server) -> None:
    assert server._server is not None
    server._server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def serving(play: Play = lambda number, seen: Act()) -> Iterator[Server]:
    """A server while the block runs."""
    server = Server(play)
    thread = Thread(target=server._loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server._start(), server._loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), server._loop).result()
        server._loop.call_soon_threadsafe(server._loop.stop)
        thread.join()
        server._loop.close()
