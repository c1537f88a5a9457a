"""A step that lets records through or not, one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Filter(Step):
    """Keeps records as they are, in their order; a subclass writes `fault`."""

    @abstractmethod
    def fault(self, record: Record) -> str:
        """Why it falls, in a few words that many records share; '' where it stays."""

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        kept = []
        for record in records:
            if reason := self.fault(record):
                work.drop(record, reason)
            else:
                kept.append(record)
        return kept
