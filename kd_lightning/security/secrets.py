"""Secrets come by the name of an environment variable, and their values go nowhere else.

What a run writes or says (configuration, logs, dashboards, cards, errors) passes through `redacted`
first: the value of every variable whose name says that it is a secret becomes that name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, cast

SHORTEST = 8
"""Shorter values are words that may stand anywhere."""

_NAME = re.compile(
    r"(^|[._-])(api[_-]?key|access[_-]?key|private[_-]?key|key|secret|password|passwd|token|"
    r"credentials?)$",
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"(^|[._-])(api[_-]?key|secret|password|passwd|token|credentials?)$", re.IGNORECASE
)
_LINE = re.compile(r"(?P<start>[\s-]*(?P<name>[\w.-]+):\s+)(?P<value>\S.*)$")


def secret_option(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return bool(_OPTION.search(name))


def values(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Value to the name of the variable that holds it, the longest value first."""
    found = {
        value: name
        for name, value in sorted(environment.items())
        if _NAME.search(name) and len(value) >= SHORTEST
    }
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def redacted(text: str) -> str:
    """The text with `<NAME>` in place of every secret value."""
    for value, name in values().items():
        text = text.replace(value, f"<{name}>")
    return text


def masked(text: str) -> str:
    """A YAML text without the values of secret options and of secret variables."""
    lines = []
    for line in redacted(text).splitlines(keepends=True):
        found = _LINE.match(line)
        if found and secret_option(found["name"]) and found["value"] not in ("null", "~"):
            line = f"{found['start']}'***'\n"
        lines.append(line)
    return "".join(lines)


def holds_secret(arguments: Sequence[str]) -> bool:
    """Whether a command line names a secret's value."""
    names = [argument.partition("=")[0].lstrip("-") for argument in arguments]
    return any(map(secret_option, names)) or any(redacted(a) != a for a in arguments)


class Redacting:
    """A text stream that writes no secret, whoever writes to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, redacted; its own length, as a stream says."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Let nothing that this process says hold a secret; where there is none, nothing changes."""
    if not values():
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Redacting):
            setattr(sys, name, cast(TextIO, Redacting(stream)))
