"""Programs that nobody has read: run apart, with limits, and off unless a configuration allows it.

A grader that runs a model's code runs it here: in namespaces of its own (user, network, processes,
mounts, host name), with an empty environment, a read-only view of the interpreter and nothing else,
and limits on time, memory, files, processes and output. Nothing of the run is visible inside.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kd_lightning.errors import KDError

NOBODY = 65534
"""Whom a program runs as where we are root; else it is the only user of a namespace."""

_NAMESPACES = ("--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child")

_ROOM = r"""
set -e
mount -t tmpfs -o size={disk},mode=755 room {room}
for place in {places}; do
  mkdir -p {room}$place
  mount --rbind $place {room}$place
  mount -o remount,bind,ro,nosuid,nodev {room}$place 2>/dev/null ||
    mount -o remount,bind,ro {room}$place
done
mkdir -p {room}/proc {room}/tmp {room}/dev
chmod 1777 {room}/tmp
mount -t proc proc {room}/proc
for device in null zero urandom; do
  touch {room}/dev/$device; mount --bind /dev/$device {room}/dev/$device
done
cd {room}/tmp
exec chroot {who} {room} setpriv --no-new-privs --bounding-set=-all --inh-caps=-all \
  /bin/sh -c 'cd /tmp && exec "$0" "$@"' "$@"
"""

_HARNESS = """
import resource, sys
for name, most in {limits}:
    resource.setrlimit(getattr(resource, name), (most, most))
with open(0, "rb", closefd=False) as told:
    sign, program = told.read().decode().split("\\n", 1)
sys.stdin = open("/dev/null")
exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
print("\\n" + sign, flush=True)
"""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """Wall-clock time."""
    memory_bytes: int = 512 * 2**20
    """Address space."""
    disk_bytes: int = 16 * 2**20
    """Files, all together; they vanish with the program."""
    output_bytes: int = 64 * 2**10
    """What it may print; more ends it."""
    processes: int = 16
    """Processes and threads."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It ran to its last line."""
    reason: str
    """`ran`, `failed`, `too slow` or `too much output`."""
    output: str
    """What it printed, errors included."""


def run(program: str, *, allowed: bool, limits: Limits = Limits()) -> Outcome:
    """Run a Python program apart from everything; it passed if its last line was reached.

    A program that ends itself early, with whatever exit code, has not passed: a word that is drawn
    anew each time has to be printed after its last line. A program that looks for that word inside
    its own process can find it: the sandbox protects the machine, not the grade, from an adversary.

    Args:
        program: Python source; the tests that judge it stand at its end.
        allowed: Whether the configuration allows foreign code at all.
        limits: What it may use.
    """
    if not allowed:
        raise KDError(
            "this would run code that a model wrote: set allow_code=true to allow it (it runs "
            "without network, files and environment, and with limits)"
        )
    if reason := missing():
        raise KDError(f"code cannot be run apart on this machine ({reason}): set allow_code=false")
    sign = secrets.token_hex(16)
    told = f"{sign}\n{program}".encode()
    process = _start(limits)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended before it was told what to do: judged below
        process.stdin.write(told)
        process.stdin.close()
    output, ended = _listen(process, limits)
    text = output.decode(errors="replace")
    passed = ended == "ran" and text.rstrip("\n").endswith(sign)
    if ended == "ran" and not passed:
        ended = "failed"
    return Outcome(passed, ended, text.replace(sign, "").rstrip())


@cache
def missing() -> str:
    """Why this machine cannot run programs apart; empty where it can."""
    if not sys.platform.startswith("linux"):
        return "only Linux has namespaces"
    for tool in ("unshare", "mount", "chroot", "setpriv"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}`"
    process = _start(Limits())
    assert process.stdin is not None
    process.stdin.write(b"ready\n")
    process.stdin.close()
    output, _ = _listen(process, Limits())
    if b"ready" not in output:
        return output.decode(errors="replace").strip().splitlines()[-1:][0] if output else "no word"
    return ""


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    root = os.geteuid() == 0
    interpreter = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    places = [p for p in ("/bin", "/sbin", "/lib", "/lib64", "/usr", sys.base_prefix) if _real(p)]
    places = [p for p in dict.fromkeys(places) if not any(_inside(p, q) for q in places)]
    script = _ROOM.format(
        room="/mnt",
        disk=limits.disk_bytes,
        places=" ".join(places),
        who=f"--userspec={NOBODY}:{NOBODY} --groups=" if root else "",
    )
    harness = _HARNESS.format(
        limits=[
            ("RLIMIT_AS", limits.memory_bytes),
            ("RLIMIT_CPU", int(limits.seconds) + 1),
            ("RLIMIT_FSIZE", limits.disk_bytes),
            ("RLIMIT_NPROC", limits.processes),
            ("RLIMIT_NOFILE", 64),
            ("RLIMIT_CORE", 0),
        ]
    )
    user = [] if root else ["--user", "--map-root-user"]
    command = ["unshare", *user, *_NAMESPACES, "/bin/sh", "-c", script, "sh", interpreter]
    return subprocess.Popen(
        [*command, "-I", "-S", "-c", harness],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def _real(place: str) -> bool:
    return Path(place).is_dir()


def _inside(place: str, other: str) -> bool:
    return place != other and Path(place).is_relative_to(other)


def _listen(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, str]:
    """What it prints until it ends or a limit is reached; then nothing of it is left."""
    assert process.stdout is not None
    heard, ended, until = b"", "ran", time.monotonic() + limits.seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                ended = "too slow"
                break
            if not selector.select(left):
                continue
            piece = os.read(process.stdout.fileno(), 2**16)
            if not piece:
                break
            heard += piece
            if len(heard) > limits.output_bytes:
                heard, ended = heard[: limits.output_bytes], "too much output"
                break
    with suppress(ProcessLookupError):  # it is gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return heard, ended
