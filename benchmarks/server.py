"""Short requests to a server on loopback, 100 in flight: ours beside a bare asynchronous client.

The bare client is the same library without anything: no retries, deadlines, limits or checks; a
semaphore, `gather`, and the answer's JSON. Rounds alternate; both ask the same server, a process of
its own that answers at once (so that the client is all there is to wait for) or after a while.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness import OURS, Report, median, parser
from kd_lightning.teachers.server import ServerTeacher
from kd_lightning.types import Prompt, Sampling

IN_FLIGHT = 100
SIZES = {"full": 10_000, "tiny": 300}
WAITS = {"at once": 0.0, "after 50 ms": 0.05}
"""Until the server answers."""

ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "It is seven."}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
}


class Quick(asyncio.Protocol):
    """As little of a server as speaks HTTP, so that it is not what is measured."""

    wait = 0.0

    def __init__(self) -> None:
        body = json.dumps(ANSWER).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self.told = f"{head}\r\n\r\n".encode() + body
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if self.wait:
                asyncio.get_running_loop().call_later(self.wait, self._say)
            else:
                self._say()

    def _say(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.told)


def serve(pipe: Connection, wait: float) -> None:
    """Tell the port, and answer until the process is ended."""

    async def run() -> None:
        Quick.wait = wait
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Quick, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def bare(url: str, texts: list[str]) -> int:
    """The same requests by the client library alone."""
    import aiohttp

    async def run() -> int:
        gate = asyncio.Semaphore(IN_FLIGHT)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(text: str) -> dict[str, Any]:
                turn = {"role": "user", "content": text}
                asked = {
                    "model": "m", "messages": [turn], "max_tokens": 16, "temperature": 0.0,
                }  # fmt: skip
                async with gate, session.post(f"{url}/chat/completions", json=asked) as answer:
                    told: dict[str, Any] = await answer.json()
                    return told

            found = await asyncio.gather(*map(one, texts))
        return sum(len(told["choices"]) for told in found)

    return asyncio.run(run())


def ours(url: str, texts: list[str]) -> int:
    """Through the teacher."""
    teacher = ServerTeacher(url, "m", logprobs=False, concurrency=IN_FLIGHT)
    try:
        prompts = [Prompt.user(text) for text in texts]
        return sum(map(len, teacher.generate(prompts, sampling=Sampling(max_new_tokens=16))))
    finally:
        teacher.close()


def rates(url: str, count: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Requests per second and processor microseconds per request, in alternating rounds."""
    texts = [f"What is {i} and {i + 1}?" for i in range(count)]
    ways: dict[str, Callable[[str, list[str]], int]] = {"bare client": bare, OURS: ours}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    names = list(ways)
    for round_ in range(repeats + 1):
        for name in names if round_ % 2 else names[::-1]:
            start, spent = time.perf_counter(), time.process_time()
            answered = ways[name](url, texts)
            took, spent = time.perf_counter() - start, time.process_time() - spent
            assert answered == count
            if round_:
                found[name].append({"rate": count / took, "cpu": 1e6 * spent / count})
    return found


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run it."""
    options = parser(__doc__).parse_args(arguments)
    report = Report(
        "server", f"{SIZES['full']} short requests, {IN_FLIGHT} in flight", options.preset
    )
    count, panels = SIZES[options.preset], {}
    for name, wait in WAITS.items():
        mine, other = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(other, wait))
        process.start()
        try:
            url = f"http://127.0.0.1:{mine.recv()}/v1"
            found = rates(url, count, options.repeats)
        finally:
            process.terminate()
            process.join()
        for way, rounds in found.items():
            report.row(
                server=f"answers {name}",
                client=way,
                per_second=median([r["rate"] for r in rounds]),
                cpu_us=median([r["cpu"] for r in rounds]),
            )
        pairs = list(zip(found[OURS], found["bare client"], strict=True))
        ratios = [a["rate"] / b["rate"] for a, b in pairs]
        cpu = [b["cpu"] / a["cpu"] for a, b in pairs]
        report.notes.append(
            f"answers {name}: ours / bare by rounds: rate {_spread(ratios)}; requests per "
            f"processor second {_spread(cpu)}"
        )
        report.at_least(f"rate, answers {name}", median(ratios), 0.9)
        panels[f"answers {name}"] = {w: median([r["rate"] for r in f]) for w, f in found.items()}
    report.finish(options.out, panels, "requests per second")
    return report


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
