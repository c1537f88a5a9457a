"""Language modelling: every token of a text is learned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.length import Lengths
from kd_lightning.data.rows import Row
from kd_lightning.types import Example


class PlainText(KDDataModule):
    """Documents without roles: the token that begins a text (if there is one), the text, its end.

    A row may say with a false `complete` that its text stops in the middle: it gets no end token.
    """

    fields: ClassVar = {"text": ("content", "document", "story"), "complete": ()}

    def __init__(
        self,
        *args: Any,
        end: Literal["eos", "bos", "none"] = "eos",
        long: Literal["window", "policy"] = "window",
        prompt_tokens: int = 16,
        **settings: Any,
    ) -> None:
        """Store the settings.

        Args:
            *args: See KDDataModule.
            end: Token after a text; `bos` for models that were trained with the beginning of the
                next text as the end of the last.
            long: What happens to a text longer than max_length: `window` cuts it into rows that
                overlap by one token, so that every token is learned once; `policy`: as
                `truncation` says.
            prompt_tokens: How many tokens of a text are given where a model is asked to go on.
            **settings: See KDDataModule.
        """
        super().__init__(*args, **settings)
        self.end = end
        self.long = long
        self.prompt_tokens = prompt_tokens

    def render(self, row: Row) -> Example:
        whole = self.end != "none" and row.get("complete", True) is not False
        meta = {"end": self.end if whole else None}
        return Example.document(id=row.id, text=row.text("text"), meta=meta)

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        return {}

    def prompt_ids(self, example: Example) -> list[int]:
        """The beginning of the text."""
        ids = self.encode(example).ids.tolist()
        return [int(i) for i in ids[: self.prompt_tokens + (self.encoder.bos is not None)]]

    def lengths(self, split: str) -> Lengths:
        lengths = super().lengths(split)
        if self.long == "window":
            lengths.policy = "window"
        return lengths
