"""What a split holds, as one small table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.data.encoding import Encoded


@dataclass(frozen=True)
class Summary:
    """Counts of one split."""

    rows: int
    """Rows that are learned from or measured."""
    tokens: int
    """Their tokens, without padding."""
    answered: float
    """Share of the tokens that count in the loss."""
    longest: int
    """Tokens of the longest row."""
    truncated: int = 0
    """Rows that were cut to the limit."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    parts: Mapping[str, Summary] = field(default_factory=dict)
    """The same for each skill of a mixture."""

    @classmethod
    def of(
        cls, rows: Sequence[Encoded], truncated: int = 0, dropped: Mapping[str, int] | None = None
    ) -> Summary:
        """Count the rows."""
        tokens = sum(len(row) for row in rows)
        answered = sum(row.answered for row in rows)
        return cls(
            rows=len(rows),
            tokens=tokens,
            answered=answered / tokens if tokens else 0.0,
            longest=max((len(row) for row in rows), default=0),
            truncated=truncated,
            dropped=dict(dropped or {}),
        )


@rank_zero_only
def show(summaries: Mapping[str, Summary]) -> None:
    """Print the table, on the first process."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="data", title_justify="left")
    for column in ("split", "rows", "tokens", "answered", "longest", "cut", "left out"):
        table.add_column(column, justify="left" if column in ("split", "left out") else "right")
    for split, summary in summaries.items():
        for name, part in {
            split: summary,
            **{f"  {n}": p for n, p in summary.parts.items()},
        }.items():
            table.add_row(
                name,
                f"{part.rows:,}",
                f"{part.tokens:,}",
                f"{part.answered:.1%}",
                str(part.longest),
                str(part.truncated),
                ", ".join(f"{count} {why}" for why, count in part.dropped.items()) or "0",
            )
    Console().print(table)
