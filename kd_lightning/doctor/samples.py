"""Rows for the eye: what is learned of them, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.data.encoding import Encoded

WIDEST = 240
"""Characters of one part of a sample; longer ones are cut in the middle."""


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens that are all learned, or all not."""

    text: str
    learned: bool


def tokens_shown(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Part]]:
    """The row's name and its parts."""
    found = []
    flags = [bool(w) and i > 0 for i, w in enumerate(row.weights.tolist())]
    for learned, group in groupby(zip(flags, row.ids.tolist(), strict=True), lambda pair: pair[0]):
        decoded = tokenizer.decode([token for _, token in group])
        text = decoded if isinstance(decoded, str) else "".join(decoded)
        text = text.replace("\n", "↵")
        if len(text) > WIDEST:
            text = f"{text[: WIDEST // 2]} … {text[-WIDEST // 2 :]}"
        found.append(Part(text, learned))
    return row.example.id, found


class Samples:
    """Samples in colour: green is learned; without colours, what is learned stands in «»."""

    def __init__(self, rows: Sequence[tuple[str, list[Part]]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One paragraph a row."""
        coloured = console.color_system is not None
        for name, row in self.rows:
            line = Text(f"{name}  ", style="cyan")
            for part in row:
                if coloured:
                    line.append(part.text, style="bold green" if part.learned else "dim")
                else:
                    line.append(f"«{part.text}»" if part.learned else part.text)
            yield line
        note = "green: learned" if coloured else "«...»: learned"
        yield Text(note, style="dim")
