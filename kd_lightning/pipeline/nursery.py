"""A process that has imported everything, of which each stage is a copy: start-up is paid once.

`python -m kd_lightning.pipeline.nursery` reads the arguments of a stage from each line of its
standard input, and answers with the stage's exit code. Where there is an accelerator, which may not
survive being copied, a stage is a new interpreter instead. Started with arguments (by Lightning,
for the other ranks of a stage) it is the command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import IO


class Nursery:
    """Runs commands of ours, one after the other, each in a process of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def run(self, arguments: Sequence[str]) -> int:
        """A command's exit code; started at the first need."""
        if self._process is None:
            read, write = os.pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                text=True,
                pass_fds=[write],
                env={**os.environ, ANSWERS: str(write)},
            )
            os.close(write)
            self._answers = os.fdopen(read, encoding="utf-8")
        assert self._process.stdin is not None and self._answers is not None
        self._process.stdin.write(json.dumps(list(arguments)) + "\n")
        self._process.stdin.flush()
        told = self._answers.readline()
        return int(told) if told else self._process.wait() or 1

    def close(self) -> None:
        """Let a running stage end, and the process with it."""
        if self._process is not None and self._answers is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._answers.close()
        self._process = self._answers = None


ANSWERS = "KD_NURSERY_ANSWERS"
"""The variable with the number of the file that exit codes are written to."""


def stage() -> list[str]:
    """In the copy that is a stage: its arguments. In the nursery itself it never returns."""
    answers = int(os.environ.pop(ANSWERS))
    import torch

    import kd_lightning.application
    import kd_lightning.elicitation

    kd_lightning.elicitation.load()
    copied = not torch.accelerator.is_available()
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the stage is told too, and ends as it wants
    while line := sys.stdin.readline():
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads that hold no lock
            child = os.fork()
        if not child:
            os.close(answers)
            signal.signal(signal.SIGINT, before)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            found: list[str] = json.loads(line)
            if not copied:
                os.execv(sys.executable, [sys.executable, "-m", "kd_lightning.cli", *found])
            return found
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{code}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv[1:] = stage()
    from kd_lightning.cli import main

    sys.exit(main())
