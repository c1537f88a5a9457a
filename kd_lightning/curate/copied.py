"""Answers that only repeat what the question shows."""

from __future__ import annotations

import re

from kd_lightning.curate.filter import Filter
from kd_lightning.curate.texts import Names, named, text_of
from kd_lightning.knowledge.records import Record

_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class NotCopied(Filter):
    """Drop a record if a code block of its answer is one of its question's; spaces do not count.

    Where a text has no fenced block, the whole of it is the block.

    Source: the filter of Wei et al. 2023 (Magicoder), arXiv 2312.02120.
    """

    def __init__(self, field: Names = "answer", of: Names = "prompt") -> None:
        """Store the settings.

        Args:
            field: The text that should be new, or several.
            of: The text that it must not repeat, or several.
        """
        self.field = field
        self.of = of

    def fault(self, record: Record) -> str:
        given, told = (_blocks(text_of(record, names)) for names in (self.field, self.of))
        return f"{named(self.field)} repeats code of {named(self.of)}" if given & told else ""


def _blocks(text: str) -> set[str]:
    found = {"".join(block.split()) for block in _FENCED.findall(text) or [text]}
    return found - {""}
