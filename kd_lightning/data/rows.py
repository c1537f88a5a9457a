"""One row of a data set: its fields by our names, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_lightning.errors import KDError

_ABSENT = object()

Kinds = dict[str, tuple[str, str]]
"""Field to the kind of its values (text, number, list) and the place where that was seen first."""


class Row(Mapping[str, Any]):
    """A row whose fields are found by our name, by a user's column, or by a usual other name.

    `row["prompt"]` reads the column that `columns` names for `prompt`; without one, the column
    `prompt` itself; then the usual other names in `aliases`. A column may be a path into nested
    values: `instances.0.output`.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        place: str,
        id: str = "",
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
        kinds: Kinds | None = None,
    ) -> None:
        """`place`: file and line, for messages; `id`: a shorter name (default: the place).

        `kinds` is shared by the rows of a split: a field whose kind changes is named.
        """
        self.values_by_column = values
        self.place = place
        self.split = split
        self.part = ""  # name of the part of a mixture that it is from
        self._columns = columns or {}
        self._aliases = aliases or {}
        self._kinds = {} if kinds is None else kinds
        named = self.get("id") if "id" in self._columns else None
        self.id = str(named) if named is not None else id or place

    def __getitem__(self, field: str) -> Any:
        value = self._find(field)
        if value is _ABSENT:
            wanted = " or ".join(repr(name) for name in self._candidates(field))
            has = ", ".join(repr(name) for name in self.values_by_column) or "none"
            raise KDError(
                f"{self.place}: the row has no {wanted}, which is needed as {field!r} "
                f"(its columns: {has}): name the right one with --data.columns.{field}=<column>"
            )
        return value

    def get(self, field: str, default: Any = None) -> Any:
        """The value, or `default` where the row does not have it or has null."""
        value = self._find(field)
        return default if value is _ABSENT else value

    def text(self, field: str, default: str | None = None) -> str:
        """The value as text; an error where it is no text (a number counts as text)."""
        value = self._find(field)
        if value is _ABSENT and default is not None:
            return default
        value = self[field]
        if isinstance(value, str):
            self._same_kind(field, "text")
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._same_kind(field, "number")
            return str(value)
        raise KDError(
            f"{self.place}: {field!r} holds a {type(value).__name__} where text is needed: name a "
            f"column of texts with --data.columns.{field}=<column> (for example <column>.0)"
        )

    def texts(self, field: str) -> tuple[str, ...]:
        """The value as several texts: a list of them, or one."""
        value = self[field]
        if not isinstance(value, list | tuple):
            return (self.text(field),)
        self._same_kind(field, "list")
        if not value or not all(isinstance(item, str) for item in value):
            raise KDError(f"{self.place}: {field!r} must be a text or a list of texts")
        return tuple(value)

    def _same_kind(self, field: str, kind: str) -> None:
        """Refuse a field that is a text in one row and a number or a list in another."""
        first, place = self._kinds.setdefault(field, (kind, self.place))
        if kind != first:
            raise KDError(
                f"{self.place}: {field!r} holds a {kind} and held a {first} before ({place}): "
                "write the same kind in all rows"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_column)

    def __len__(self) -> int:
        return len(self.values_by_column)

    def __contains__(self, field: object) -> bool:
        return isinstance(field, str) and self._find(field) is not _ABSENT

    def _candidates(self, field: str) -> Sequence[str]:
        if field in self._columns:
            return (self._columns[field],)
        return (field, *self._aliases.get(field, ()))

    def _find(self, field: str) -> Any:
        for path in self._candidates(field):
            value = _walk(self.values_by_column, path)
            if value is not _ABSENT and value is not None:
                return value
        return _ABSENT


def _walk(values: Any, path: str) -> Any:
    """Follow `a.0.b` through mappings and lists; a column whose name has dots comes first."""
    if isinstance(values, Mapping) and path in values:
        return values[path]
    head, _, rest = path.partition(".")
    if isinstance(values, Mapping) and head in values:
        found = values[head]
    elif isinstance(values, list | tuple) and head.isdigit() and int(head) < len(values):
        found = values[int(head)]
    else:
        return _ABSENT
    return _walk(found, rest) if rest else found
