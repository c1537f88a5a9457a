"""What curators read of a record: its texts, its words, its numbers, the prompt that it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.types import Message, Prompt

Names = str | list[str]
"""One field's name, or several: their texts are read one below the other."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]|[^\W_]+")


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; scripts without spaces: one character each."""
    return _WORD.findall(text.lower())


def listed(names: Names) -> list[str]:
    """Always a list."""
    return [names] if isinstance(names, str) else list(names)


def named(names: Names) -> str:
    """For messages."""
    return " and ".join(listed(names))


def text_of(record: Record, names: Names) -> str:
    """The text in a field: turns without roles, lists line by line; '' where it is missing."""
    found = [_flat(record.get(name, "")) for name in listed(names)]
    return "\n".join(text for text in found if text)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return _flat(value.get("content", list(value.values())))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "\n".join(_flat(part) for part in value)
    return "" if value is None else str(value)


def number_of(record: Record, name: str) -> float | None:
    """The number in a field, or at a path into one (`scores.0`); None where there is none."""
    value: Any = record.get(name)
    if value is None and "." in name:
        value = record.values
        for part in name.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
    return as_number(value)


def as_number(value: Any) -> float | None:
    """A value as a number, if it is one (a truth value counts); never NaN."""
    if isinstance(value, int | float):
        number = float(value)
    elif isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
    else:
        return None
    return None if number != number else number


def prompt_of(record: Record, prompt: str = "prompt") -> Prompt | None:
    """What the record asks: its field `prompt`, else its turns before the last answer."""
    asked, system = record.text(prompt), record.text("system") or None
    if asked:
        return Prompt.user(asked, system)
    turns = [Message(t["role"], t.get("content") or "") for t in record.get("messages", [])]
    last = max((i for i, t in enumerate(turns) if t.role == "assistant"), default=len(turns))
    if not turns[:last]:
        return None
    return Prompt(tuple(turns[:last]))


def answer_of(record: Record, answer: str = "answer") -> str:
    """What the record answers: its field `answer`, else its last turn of the assistant."""
    if told := record.text(answer):
        return told
    turns = record.get("messages", [])
    return next((t.get("content") or "" for t in reversed(turns) if t["role"] == "assistant"), "")


def picked(record: Record, keep: Sequence[int], among: int, names: Iterable[str]) -> dict[str, Any]:
    """Lists that go along with `among` candidates, cut to the places `keep`."""
    values = {name: record.get(name) for name in names}
    return {
        name: [value[i] for i in keep]
        for name, value in values.items()
        if isinstance(value, list) and len(value) == among
    }


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a setting that is too small."""
    if value < least:
        raise KDError(f"{name} must be at least {least:g}, not {value:g}")


def between(name: str, value: float, least: float, most: float) -> None:
    """Refuse a setting outside its range."""
    if not least <= value <= most:
        raise KDError(f"{name} must lie between {least:g} and {most:g}, not {value:g}")
