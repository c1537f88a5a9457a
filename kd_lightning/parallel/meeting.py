"""Where the processes of one machine meet: at an address that no other machine reaches."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

HOSTED = "TORCHELASTIC_USE_AGENT_STORE"
"""Tells torch that somebody else hosts the meeting point."""

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Which interface each library listens on."""


@contextmanager
def meeting(strategy: DDPStrategy | ModelParallelStrategy) -> Iterator[Any | None]:
    """A meeting point on loopback for a single node's processes, which meet inside of this.

    torch would listen on every address of the machine, and believes whoever connects. Of several
    nodes, and where a launcher hosts it, the network must be trusted. Keep what is given for as
    long as the processes live.
    """
    environment = strategy.cluster_environment
    assert environment is not None
    one = strategy.num_nodes == 1 and strategy.num_processes > 1
    local = one and ip_address(socket.gethostbyname(environment.main_address)).is_loopback
    if not local or dist.is_initialized() or HOSTED in os.environ:
        yield None
        return
    for name in INTERFACES:
        os.environ.setdefault(name, _loopback())
    hosted = _host(environment) if strategy.local_rank == 0 else None
    os.environ[HOSTED] = "True"
    try:
        yield hosted
    finally:
        del os.environ[HOSTED]


def _host(environment: ClusterEnvironment) -> Any:
    listening = socket.create_server((environment.main_address, environment.main_port))
    return dist.TCPStore(  # type: ignore[attr-defined]
        environment.main_address,
        environment.main_port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def _loopback() -> str:
    """`lo` on Linux, `lo0` elsewhere."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
