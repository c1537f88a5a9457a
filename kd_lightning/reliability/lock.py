"""One run, one folder: a second process is refused while the first one lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_warn

from kd_lightning.errors import KDError

NAME = "run.lock"
BEAT = 10.0
"""Seconds between two signs of life."""
DEAD = 60.0
"""Seconds without one after which a run on another machine counts as dead."""


class RunLock:
    """Holds a run's folder for this process.

    The system's lock on `run.lock` goes with the process, however it ends. Where another machine
    shares the folder and the lock does not reach it, the file's time tells whether its owner lives.
    A lock that was left behind is taken over, with a line that says so.
    """

    _held: dict[Path, RunLock] = {}  # noqa: RUF012 (a process's locks do not exclude itself)

    def __init__(self, folder: Path) -> None:
        self.path = folder.absolute() / NAME
        self._file: IO[str] | None = None
        self._done = threading.Event()

    def acquire(self) -> None:
        """Take the folder, or say who has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path in self._held:
            raise self._refusal(self._me())
        while self._file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal(_told(file)) from None
            except OSError:  # a file system without locks: the times below must do
                pass
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                self._file = file
            else:  # its owner has just ended and deleted it
                file.close()
        self._take_over(_told(self._file))
        self._file.seek(0)
        self._file.truncate()
        json.dump(self._me(), self._file)
        self._file.flush()
        self._held[self.path] = self
        threading.Thread(target=self._beat, daemon=True, name="run.lock").start()

    def release(self) -> None:
        """Give the folder free."""
        self._done.set()
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
        self._held.pop(self.path, None)

    def _take_over(self, former: dict[str, Any]) -> None:
        if not former:
            return
        assert self._file is not None
        here = former.get("host") == socket.gethostname()
        silent = time.time() - os.fstat(self._file.fileno()).st_mtime
        if not here and silent < DEAD:
            self._file.close()
            self._file = None
            raise self._refusal(former)
        rank_zero_warn(
            f"{self.path.parent}: process {former.get('pid')} on {former.get('host')} has ended "
            "without giving this folder free; it is taken over"
        )

    def _refusal(self, owner: dict[str, Any]) -> KDError:
        return KDError(
            f"{self.path.parent} is in use by process {owner.get('pid')} on {owner.get('host')} "
            f"(since {owner.get('since')}): wait for it, or write another folder "
            "(--trainer.default_root_dir=<folder>)"
        )

    @staticmethod
    def _me() -> dict[str, Any]:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # somebody deleted the run's folder: nothing to hold
                return


def _told(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        told: dict[str, Any] = json.loads(file.read() or "{}")
    except ValueError:  # its owner died while writing it
        told = {"pid": "unknown", "host": socket.gethostname()}
    return told
