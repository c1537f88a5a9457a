"""Reading files row by row; what is wrong is named with its file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from kd_lightning.errors import KDError

Raw = tuple[dict[str, Any], int]
"""A row's columns and its line (or its number, where the file has no lines)."""


class Bad(Protocol):
    """What happens to a line that cannot be read while the others can."""

    def take(self, error: KDError, content: Any) -> None:
        """Leave it out, or raise the error."""

    def saw(self) -> None:
        """A row could be read."""


Reader = Callable[[Path, Bad | None], Iterator[Raw]]

DOCUMENT_END = "<|endoftext|>"
"""A line that separates the documents of a text file; without any, blank lines do."""


def read_file(path: Path, bad: Bad | None = None) -> Iterator[Raw]:
    """The rows of a jsonl, json, csv, tsv, parquet or txt file.

    Single lines that cannot be read go to `bad` (None: the error is raised); a file that is broken
    as a whole is always an error.
    """
    if not path.is_file():
        raise KDError(f"{path} does not exist: write an existing file to --data.path")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise KDError(
            f"{path}: no reader for {path.suffix or 'a file without an ending'!r}: "
            f"write one of {', '.join(READERS)}"
        )
    empty = True
    for raw in reader(path, bad):
        empty = False
        if bad is not None:
            bad.saw()
        yield raw
    if empty:
        raise KDError(f"{path} is empty: write a file with at least one row")


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _decoded(line, path, number), number


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise KDError(
            f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8: "
            "save the file as UTF-8"
        ) from None


def _row(value: Any, path: Path, line: int) -> Raw:
    if not isinstance(value, dict):
        raise KDError(
            f'{path}:{line}: a row must be an object such as {{"prompt": ...}}, '
            f"not a {type(value).__name__}"
        )
    return value, line


def _jsonl(path: Path, bad: Bad | None) -> Iterator[Raw]:
    with path.open("rb") as file:
        for line, content in enumerate(file, 1):
            try:
                text = _decoded(content, path, line)
                if not text.strip():
                    continue
                raw = _row(_parsed(text, path, line), path, line)
            except KDError as error:
                if bad is None:
                    raise
                bad.take(error, content.decode("utf-8", "backslashreplace"))
                continue
            yield raw


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise KDError(
            f"{path}:{line}: broken JSON ({error.msg} at column {error.colno}): "
            "write one whole object on each line"
        ) from None
    except RecursionError:
        raise KDError(f"{path}:{line}: the JSON is nested too deeply to be read") from None


def _json(path: Path, _: Bad | None) -> Iterator[Raw]:
    text = "".join(line for line, _ in _lines(path))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise KDError(
            f"{path}:{error.lineno}: broken JSON ({error.msg} at column {error.colno}): "
            "write a list of objects (or one object on each line, in a .jsonl file)"
        ) from None
    except RecursionError:
        raise KDError(f"{path}: the JSON is nested too deeply to be read") from None
    if not isinstance(value, list):
        raise KDError(f"{path}: write a list of objects, not a {type(value).__name__}")
    for number, item in enumerate(value, 1):
        yield _row(item, path, number)


def _table(delimiter: str) -> Reader:
    def read(path: Path, bad: Bad | None) -> Iterator[Raw]:
        reader = csv.DictReader((text for text, _ in _lines(path)), delimiter=delimiter)
        try:
            for row in reader:
                if None in row or None in row.values():
                    wrong = KDError(
                        f"{path}:{reader.line_num}: the row does not have the "
                        f"{len(reader.fieldnames or ())} columns of the first line"
                    )
                    if bad is None:
                        raise wrong
                    bad.take(wrong, {str(k): v for k, v in row.items()})
                else:
                    yield row, reader.line_num
        except csv.Error as error:
            raise KDError(f"{path}:{reader.line_num}: broken table ({error})") from None

    return read


def _parquet(path: Path, _: Bad | None) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield row, number
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise KDError(f"{path}: broken parquet file after row {number} ({reason})") from None


def _text(path: Path, _: Bad | None) -> Iterator[Raw]:
    marked = any(text.strip() == DOCUMENT_END for text, _ in _lines(path))
    lines: list[str] = []
    start = 1
    for text, number in _lines(path):
        if text.strip() == (DOCUMENT_END if marked else ""):
            if document := "".join(lines).strip():
                yield {"text": document}, start
            lines, start = [], number + 1
        else:
            lines.append(text)
    if document := "".join(lines).strip():
        yield {"text": document}, start


READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".txt": _text,
}
"""File ending to its reader."""
