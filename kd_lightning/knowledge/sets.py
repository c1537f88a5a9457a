"""A set of records on disk: shards, and a card that is written last."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kd_lightning import files
from kd_lightning.data.knowledge import CARD, KIND
from kd_lightning.data.sources import SPLITS
from kd_lightning.knowledge.records import Record

Format = Literal["jsonl", "parquet"]


def write_records(path: Path, records: Iterable[Record]) -> str:
    """One record on each line; the file's SHA-256."""
    return files.write(path, (_line(record.as_row()) for record in records))


def read_records(path: Path) -> list[Record]:
    """The way back."""
    with path.open("rb") as file:
        return [Record.from_row(json.loads(line)) for line in file]


def write_set(
    folder: Path,
    records: Sequence[Record],
    card: Mapping[str, Any],
    format: Format = "jsonl",
    shard_rows: int = 50_000,
) -> dict[str, Any]:
    """Shards of each split (a record's value `split`; train without one), then the card.

    Whenever the process ends, the folder holds the former set, the new one, or none that is
    finished: shards are named by their content, and the card names the shards.
    """
    by_split: dict[str, list[Record]] = {}
    for record in records:
        by_split.setdefault(str(record.get("split", "train")), []).append(record)
    shards: list[dict[str, Any]] = []
    place = folder / "shards"
    place.mkdir(parents=True, exist_ok=True)
    for split in sorted(by_split, key=lambda s: SPLITS.index(s) if s in SPLITS else 9):
        rows = by_split[split]
        for number, start in enumerate(range(0, len(rows), shard_rows)):
            part = rows[start : start + shard_rows]
            shards.append(_write_shard(place, split, number, part, format))
    told = {"kind": KIND, "format": 1, **card, "records": len(records), "shards": shards}
    files.write(folder / "README.md", [readme(told).encode()])
    files.write_json(folder / CARD, told)
    named = {Path(shard["name"]).name for shard in shards}
    for left in place.iterdir():
        if left.name not in named:
            left.unlink()
    return told


def _write_shard(
    place: Path, split: str, number: int, records: Sequence[Record], format: Format
) -> dict[str, Any]:
    content = _parquet(records) if format == "parquet" else None
    parts = [content] if content is not None else [_line(r.as_row()) for r in records]
    beside = place / f".{split}-{number:05d}"
    digest = files.write(beside, parts)
    path = place / f"{split}-{number:05d}-{digest[:8]}.{format}"
    beside.replace(path)
    files.to_disk(place)
    return {
        "name": f"shards/{path.name}",
        "split": split,
        "rows": len(records),
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


def _line(row: Mapping[str, Any]) -> bytes:
    # surrogates stay escaped, so that the file is UTF-8 whatever a model wrote
    return (json.dumps(row, ensure_ascii=True) + "\n").encode()


def _parquet(records: Sequence[Record]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [record.as_row() for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        from kd_lightning.errors import KDError

        reason = str(error).splitlines()[0]
        raise KDError(
            f"the records do not make one table ({reason}): write --format=jsonl"
        ) from None
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def malformed(step: Mapping[str, Any]) -> str:
    """How many of a step's answers could not be read; '' where all could."""
    bad, heard = step["notes"].get("malformed answers", 0), step["notes"].get("answers", 0)
    return f"{bad:,} of {heard:,} answers malformed ({bad / heard:.1%})" if bad and heard else ""


def canaries(step: Mapping[str, Any]) -> str:
    """How many empty answers passed a judge; '' where none were shown."""
    shown = step["notes"].get("empty answers shown", 0)
    return f"{step['notes']['empty answers that passed']} of {shown} passed" if shown else ""


def readme(card: Mapping[str, Any]) -> str:
    """The card as a page, with the metadata that the hub reads."""
    licences = {g["licence"] for g in card["generators"].values()}
    known = next(iter(licences)) if len(licences) == 1 else None
    lines = ["---", "tags:", "- knowledge-distillation", "- kd_lightning"]
    lines += [f"license: {known}"] if known and "no-train" not in known else ["license: other"]
    lines += ["---", "", "# A set of elicited knowledge", "", f"{card['records']:,} records.", ""]
    lines += ["## Who spoke", "", "| generator | kind | licence of its outputs |", "|---|---|---|"]
    for name, told in card["generators"].items():
        kind = f"{told['class']} {told['name']}".strip()
        lines.append(f"| {name} | {kind} | {told['licence'] or 'not stated'} |")
    if card.get("terms_override"):
        who = ", ".join(card["terms_override"]["of"])
        stated = card["terms_override"]["statement"]
        lines += ["", f"{who} was used in spite of its terms. The user's statement: {stated}"]
    lines += ["", "## What was done", "", "| step | in | out | fell |", "|---|---|---|---|"]
    for step in card["steps"]:
        fell = ", ".join(f"{n:,} {why}" for why, n in step["dropped"].items()) or "none"
        lines.append(f"| {step['name']} | {step['taken']:,} | {step['given']:,} | {fell} |")
    bad = [f"{step['name']}: {told}" for step in card["steps"] if (told := malformed(step))]
    if bad:
        lines += ["", f"Asked again, since they could not be read: {'; '.join(bad)}."]
    if shown := [f"{step['name']}: {told}" for step in card["steps"] if (told := canaries(step))]:
        lines += ["", f"Judges were shown answers that say nothing: {'; '.join(shown)}."]
    spend = card["spend"]
    lines += [
        "",
        f"{spend['requests']:,} requests, {spend['prompt_tokens']:,} tokens read, "
        f"{spend['completion_tokens']:,} written"
        + (f", {spend['money']:.2f} spent" if spend["money"] else "")
        + ".",
        "",
        "Command:",
        "",
        "```sh",
        str(card["run"]["command"]),
        "```",
        "",
        f"Seed {card['seed']}. Every record's `lineage` says which steps made it, of what, and "
        "who spoke; `card.json` has the settings of each step, templates included.",
        "",
    ]
    return "\n".join(lines)
