"""What generators have said, written down as it comes: a killed run does not ask twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kd_lightning.teachers.generator import Reply, Usage


class Journal:
    """Replies by the key of their request, in a file that only grows.

    What is said together is written by one call of the system, which a killed process either made
    or did not; a line that was torn (by a failing disk) is left out when the file is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Reply] = {}
        self._took: dict[str, tuple[int, Usage]] = {}
        self._file: int | None = None
        if path.is_file():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                told = json.loads(line)
                self._take(told["key"], told["of"], Reply.from_json(told["reply"]))
            except (ValueError, KeyError, TypeError):
                continue  # torn: it is asked again
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Reply:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def _take(self, key: str, of: str, reply: Reply) -> None:
        self._known[key] = reply
        requests, usage = self.took(of)
        self._took[of] = (requests + 1, usage + reply.usage)

    def took(self, of: str) -> tuple[int, Usage]:
        """Requests that a generator answered, and what they took."""
        return self._took.get(of, (0, Usage()))

    def add(self, of: str, replies: Mapping[str, Reply]) -> None:
        """Write down what the generator called `of` said together."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        lines = [
            json.dumps({"key": key, "of": of, "reply": reply.as_json()}, ensure_ascii=True)
            for key, reply in replies.items()
        ]
        left = memoryview("".join(f"{line}\n" for line in lines).encode())
        while left:
            left = left[os.write(self._file, left) :]
        for key, reply in replies.items():
            self._take(key, of, reply)

    def close(self) -> None:
        """On to the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
