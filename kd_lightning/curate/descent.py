"""Which records come from the same seed."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.knowledge.records import Record


def root(record: Record) -> str:
    """The record that it was at first: the seed's id, or that of the one born of several."""
    changes = [entry["from"] for entry in record.lineage if entry["step"] != "seeds"]
    if not changes:
        return record.id
    if len(changes[0]) == 1:
        return str(changes[0][0])
    return str(changes[1][0]) if len(changes) > 1 else record.id


def families(records: Sequence[Record]) -> list[str]:
    """A name for each record that all its relations share, and no one else.

    Two records are related where one stands in the other's lineage, or a third stands in both. Of a
    parent whose own lineage is not here, the id tells the ancestors (`seed/child`).
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        low, high = sorted((find(a), find(b)))
        parent[high] = low  # the least name stands for all

    for record in records:
        known = bool(record.lineage) and record.lineage[0]["step"] == "seeds"
        for entry in record.lineage[1 if known else 0 :]:
            for name in map(str, entry["from"]):
                join(record.id, name)
                while not known and "/" in name:
                    name, before = name.rpartition("/")[0], name
                    join(name, before)
    return [find(record.id) for record in records]
