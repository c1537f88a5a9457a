"""Reads the file of an offline Weights & Biases run: records in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, in order."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, pending = 7, b""  # a header of seven bytes opens the first block
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK  # a block's tail too short for a header
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        place += 7 + length
        pending = part if kind in (FULL, FIRST) else pending + part
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            yield record


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and history of the one offline run below a run's folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        updates = record.run.config.update if kind == "run" else ()
        updates = record.config.update if kind == "config" else updates
        for item in updates:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inside = row
                for key in outer:
                    inside = inside.setdefault(key, {})
                inside[last] = json.loads(item.value_json)
            history.append(row)
    return config, history
