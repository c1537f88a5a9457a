"""Thinking step by step before the answer."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError
from kd_lightning.metrics.answers import final_number, number_match
from kd_lightning.types import Example

_CALCULATION = re.compile(r"<<[^<>]*>>")


class Thinking(KDDataModule):
    """Arithmetic word problems whose solution ends with `#### <number>`, graded by that number.

    Source: Cobbe et al. 2021 (GSM8K), arXiv 2110.14168.
    """

    fields: ClassVar = {
        "system": ("system_prompt",),
        "prompt": ("question", "problem", "instruction"),
        "answer": ("solution", "output", "response"),
    }

    def __init__(
        self,
        *args: Any,
        calculations: bool = False,
        **settings: Any,
    ) -> None:
        """Store the settings.

        Args:
            *args: See KDDataModule.
            calculations: Keep GSM8K's notes for a calculator, such as `<<48/2=24>>`.
            **settings: See KDDataModule.
        """
        super().__init__(*args, **settings)
        self.calculations = calculations

    def render(self, row: Row) -> Example:
        answer = row.text("answer")
        if final_number(answer) is None:
            raise KDError(
                f"{row.place}: the answer has no number to be graded by: end it with `#### 42`"
            )
        if not self.calculations:
            answer = _CALCULATION.sub("", answer)
        return Example.dialogue(id=row.id, user=row.text("prompt"), assistant=answer)

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        best = max(number_match(answer, reference) for reference in example.accepted)
        return {"exact_match": best}
