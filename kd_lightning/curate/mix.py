"""Records of several files in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.data.sources import open_origin
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, origin
from kd_lightning.knowledge.step import Step, Work, digest


class Mix(Step):
    """Records of files mixed in, in fixed proportions, and the whole put in a drawn order."""

    def __init__(
        self,
        files: dict[str, str],
        shares: dict[str, float],
        here: str = "here",
        total: int | None = None,
        into: str | None = "mixture",
    ) -> None:
        """Store the settings.

        Args:
            files: Name of each part to its file, folder or knowledge set.
            shares: Name of each part to its share, in any unit; `here` names the records that come
                from the step before.
            here: That name.
            total: Records altogether; None: as many as the scarcest part allows.
            into: Field that the part's name is written to; None: nowhere.
        """
        if here in files:
            raise KDError(f"files names {here!r}, which are the records of the step before")
        if odd := sorted({*files, here} ^ shares.keys()):
            raise KDError(f"{odd[0]!r} needs a file and a share: write both (`{here}`: a share)")
        if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
            raise KDError("shares must be at least 0, and one of them above it")
        self.files = files
        self.shares = shares
        self.here = here
        self.total = total
        self.into = into

    def settings(self) -> dict[str, Any]:
        content = {name: digest([r.as_row() for r in _read(p)]) for name, p in self.files.items()}
        return {**super().settings(), "files": content}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        parts = {self.here: list(records)}
        parts |= {name: _read(path) for name, path in self.files.items()}
        whole = sum(self.shares.values())
        shares = {name: share / whole for name, share in self.shares.items() if share}
        total = self.total
        if total is None:
            total = min(int(len(parts[name]) / share + 1e-9) for name, share in shares.items())
        made = []
        for name, count in _dealt(shares, total).items():
            if count > len(parts[name]):
                raise KDError(
                    f"Mix needs {count} records of {name!r}, which has {len(parts[name])}: lower "
                    "total or its share"
                )
            drawn = set(work.rng(name).sample(range(len(parts[name])), count))
            work.note(f"from {name}", count)
            for i, record in enumerate(parts[name]):
                if i in drawn:
                    made.append(self._named(record, name, work))
                elif name == self.here:
                    work.drop(record, "not drawn")
        if self.here not in shares:
            for record in records:
                work.drop(record, "not drawn")
        work.rng("order").shuffle(made)
        return made

    def _named(self, record: Record, part: str, work: Work) -> Record:
        named = {} if self.into is None else {self.into: part}
        if part == self.here:
            return record.changed(work.name, **named) if named else record
        lineage = (*record.lineage, origin(work.name, [record.id], part))
        return Record(f"{part}:{record.id}", {**record.values, **named}, lineage)


def _read(path: str) -> list[Record]:
    source = open_origin(path)
    source.download()
    split = "train" if "train" in source.splits else source.splits[0]
    return [Record.from_row(row.values, row.id) for row in source.read(split)]


def _dealt(shares: dict[str, float], total: int) -> dict[str, int]:
    """Whole numbers that add up to `total`: the largest remainders are rounded up."""
    exact = {name: share * total for name, share in shares.items()}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
