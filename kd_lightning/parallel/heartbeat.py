"""A node that is lost ends the others, instead of leaving them to wait for half an hour."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import Strategy

LIMIT = 30.0
"""Seconds without a sign of life from a node, after which this one ends."""

ALIVE, BYE = b".", b"!"


class Heartbeat(threading.Thread):
    """Signs of life over one connection: a byte each way, ten times in `limit` seconds.

    A cut link, a node without power and a killed process are silent or closed; a process that ends
    says so. Independent of what the main thread waits for.
    """

    def __init__(
        self,
        connection: socket.socket,
        who: str,
        limit: float = LIMIT,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """`who`: the other side, for the message; `end`: what to do without it."""
        super().__init__(daemon=True, name=f"heartbeat of {who}")
        self.connection = connection
        self.who = who
        self.limit = limit
        self.end = end or _end
        self._done = threading.Event()

    def run(self) -> None:
        heard = time.monotonic()
        self.connection.settimeout(self.limit / 10)
        while not self._done.is_set():
            try:
                self.connection.sendall(ALIVE)
                said = self.connection.recv(64)
            except TimeoutError:
                said = None
            except OSError:
                said = b""
            if self._done.is_set() or (said and BYE in said):
                return
            if said:
                heard = time.monotonic()
            elif said == b"":
                self.end(f"{self.who} has gone without a word")
                return
            if time.monotonic() - heard > self.limit:
                self.end(f"no sign of life from {self.who} for {self.limit:.0f} seconds")
                return
            self._done.wait(self.limit / 10)

    def stop(self) -> None:
        """Say goodbye."""
        self._done.set()
        try:
            self.connection.sendall(BYE)
        except OSError:
            return  # the other side has gone first


def _end(why: str) -> None:
    print(
        f"{why}: this process ends; the run goes on from its last checkpoint with --resume=auto",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the main thread waits inside an exchange that will not come


def watch(strategy: Strategy) -> list[Heartbeat]:
    """Begin to watch where a run has several nodes; a collective call.

    The first process of each node keeps a connection to the first node. Whoever connects must know
    a number that only the run's processes are told.
    """
    nodes = int(getattr(strategy, "num_nodes", 1))
    if nodes < 2 or not dist.is_initialized():
        return []
    rank, first = dist.get_rank(), int(getattr(strategy, "local_rank", 0)) == 0
    told: list[Any] = [None]
    server: socket.socket | None = None
    if rank == 0:
        server = socket.create_server((_own_address(), 0), backlog=nodes)
        told = [(server.getsockname()[1], secrets.token_bytes(16))]
    dist.broadcast_object_list(told)
    port, number = told[0]
    beats: list[Heartbeat] = []
    if server is not None:
        server.settimeout(LIMIT)
        while len(beats) < nodes - 1:
            connection, address = server.accept()
            connection.settimeout(LIMIT)
            if secrets.compare_digest(connection.recv(16), number):
                beats.append(Heartbeat(connection, f"the node at {address[0]}"))
            else:
                connection.close()
        server.close()
    elif first:
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=LIMIT)
        connection.sendall(number)
        beats.append(Heartbeat(connection, "the first node"))
    for beat in beats:
        beat.start()
        atexit.register(beat.stop)
    return beats


def _own_address() -> str:
    """The first node's address in the run's network; all of them where its name is only local."""
    address = socket.gethostbyname(os.environ["MASTER_ADDR"])
    return "0.0.0.0" if address.startswith("127.") else address
