"""The records that an elicitation begins with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.data.sources import open_origin
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, origin

if TYPE_CHECKING:
    from kd_lightning.knowledge.engine import Seeds


def read_seeds(seeds: Seeds, skill: KDDataModule | None) -> tuple[list[Record], dict[str, Any]]:
    """Records and what the card says of them."""
    try:
        found = list(islice(_rows(seeds, skill), seeds.limit))
    except KDError as error:  # the data modules' words name their own options
        where = "--skill." if seeds.path is None else "--seeds."
        raise KDError(str(error).replace("--data.", where)) from None
    content = json.dumps([r.as_row() for r in found], sort_keys=True, ensure_ascii=True)
    told = {
        "path": seeds.path or (type(skill).__name__ if skill is not None else None),
        "split": seeds.split,
        "records": len(found),
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }
    return found, told


def _rows(seeds: Seeds, skill: KDDataModule | None) -> Iterator[Record]:
    if seeds.path is None:
        if skill is not None:
            skill.prepare_data()
            for row in skill.placed(seeds.split):
                yield _record(row.id, dict(row.values_by_column), seeds, row.place)
        return
    paths = [seeds.path] if isinstance(seeds.path, str) else seeds.path
    for path in paths:
        source = open_origin(path)
        source.download()
        split = seeds.split if seeds.split in source.splits else None
        if split is None and (len(source.splits) > 1 or seeds.split != "train"):
            raise KDError(
                f"{path} has no {seeds.split} rows: write {' or '.join(source.splits)} to "
                "--seeds.split"
            )
        for found in source.read(split or source.splits[0]):
            yield _record(found.id, dict(found.values), seeds, found.place)


def _record(id: str, values: dict[str, Any], seeds: Seeds, place: str) -> Record:
    row = Row(values, place=place, columns=seeds.columns)
    named = {field: row[field] for field in seeds.columns}
    kept = {k: v for k, v in values.items() if k not in ("lineage", *seeds.columns.values())}
    id = str(named.pop("id", kept.pop("id", id)))
    values = {**kept, **named}
    if seeds.input == "join" and isinstance(values.get("prompt"), str):
        extra = values.pop("input", None)
        values["prompt"] += f"\n\n{extra}" if isinstance(extra, str) and extra.strip() else ""
    return Record(id, values, (origin("seeds", [place]),))
