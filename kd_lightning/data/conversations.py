"""Conversations as they stand in data sets: turns of `role, content` or of `from, value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError
from kd_lightning.types import Message

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN = ("system", "user", "assistant", "tool")


def messages_of(row: Row, field: str) -> tuple[Message, ...]:
    """The turns in a row's field; a turn may have a `weight`."""
    turns = row[field]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise KDError(f"{row.place}: {field!r} must be a list of turns with role and content")
    return tuple(_message(turn, f"{row.place}, turn {i}") for i, turn in enumerate(turns, 1))


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise KDError(f"{place}: a turn must be an object with role and content, not {turn!r}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    role = _ROLES.get(str(role), role)
    if role not in _KNOWN:
        raise KDError(f"{place}: {role!r} is no role: use {', '.join(_KNOWN)}")
    if not isinstance(content, str):
        raise KDError(f"{place}: the turn's content must be text, not {type(content).__name__}")
    weight = turn.get("weight")
    if weight is not None and not isinstance(weight, int | float):
        raise KDError(f"{place}: the turn's weight must be a number, not {weight!r}")
    return Message(role, content, None if weight is None else float(weight))
