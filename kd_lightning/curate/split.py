"""Training, validation and test, so that no root is in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kd_lightning.curate.descent import families
from kd_lightning.curate.select import placed
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Split(Step):
    """Say of each record whether it is for training, validation or test.

    By a hash of what it comes from: records that descend from one another, or from the same record,
    are always in the same part. Where all are related (a pool that grew out of its own entries),
    all are in one part: then say what else stays together in `by`.
    """

    def __init__(
        self,
        validation: float = 0.05,
        test: float = 0.0,
        into: str = "split",
        by: str = "descent",
        only: str | None = None,
    ) -> None:
        """Store the settings.

        Args:
            validation: Share for validation.
            test: Share for the test.
            into: Field that the part's name is written to.
            by: What stays together: `descent`: all that are related; `id`: nothing; or a field,
                whose values then stay together.
            only: Let only this part through; None: all.
        """
        if min(validation, test) < 0 or validation + test > 1:
            raise KDError("validation and test must be at least 0, and at most 1 together")
        if only not in (None, "train", "validation", "test"):
            raise KDError(f"only must be train, validation or test, not {only!r}")
        self.validation = validation
        self.test = test
        self.into = into
        self.by = by
        self.only = only

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having = list(records)
        if self.by not in ("descent", "id"):
            having = placed(records, self.by, work)
            names = [record.text(self.by) for record in having]
        else:
            names = families(having) if self.by == "descent" else [r.id for r in having]
        made = []
        for record, name in zip(having, names, strict=True):
            part = self._part(f"{work.seed}:{name}")
            work.count(part)
            if self.only not in (None, part):
                work.drop(record, f"for {part}")
            else:
                made.append(record.changed(work.name, **{self.into: part}))
        return made

    def _part(self, name: str) -> str:
        told = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        place = int.from_bytes(told, "little") / 2**64
        if place < self.test:
            return "test"
        return "validation" if place < self.test + self.validation else "train"
