"""The findings as a person reads them: a line each, and a verdict of three lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kd_lightning.doctor.findings import Checked, Finding, Level

SIGNS = {
    Level.OK: ("✓", "green"),
    Level.SKIPPED: ("-", "dim"),
    Level.WARNING: ("!", "yellow"),
    Level.PROBLEM: ("✗", "bold red"),
}
"""A sign and a colour for each level."""

NAME_WIDTH = 11


class Report:
    """Prints findings as they come."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.checked: list[Checked] = []

    def add(self, checked: Checked) -> None:
        """Print what one check found."""
        self.checked.append(checked)
        for number, finding in enumerate(checked.findings):
            self._line(checked.name if number == 0 else "", finding)

    def _line(self, name: str, finding: Finding) -> None:
        sign, style = SIGNS[finding.level]
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(width=NAME_WIDTH)
        grid.add_column(overflow="fold")
        dim = "dim" if finding.level is Level.SKIPPED else ""
        level = "" if finding.level in (Level.OK, Level.SKIPPED) else f"{finding.level}: "
        text = Text().append(level, style=style).append(finding.text, style=dim)
        grid.add_row(Text(sign, style=style), Text(name, style="bold"), text)
        self.console.print(grid)
        for each in finding.shown:
            what: Any = Text(each, style="dim", overflow="ellipsis", no_wrap=True) \
                if isinstance(each, str) else each  # fmt: skip
            self.console.print(Padding(what, (0, 0, 0, NAME_WIDTH + 3)))

    @property
    def problems(self) -> list[Finding]:
        """What would fail."""
        return self._of(Level.PROBLEM)

    @property
    def warnings(self) -> list[Finding]:
        """What would run, and probably not as meant."""
        return self._of(Level.WARNING)

    def _of(self, level: Level) -> list[Finding]:
        return [f for checked in self.checked for f in checked.findings if f.level is level]

    def names(self, level: Level) -> list[str]:
        """The checks with such a finding."""
        return [c.name for c in self.checked if any(f.level is level for f in c.findings)]

    def verdict(self, seconds: float, outlook: str, start: str) -> list[str]:
        """Whether to start; what is doubtful or was not seen; what to do next."""
        problems, warnings = self.names(Level.PROBLEM), self.names(Level.WARNING)
        unseen = self.names(Level.SKIPPED)
        if problems:
            first = f"This run would fail: {_count(len(self.problems), 'problem')} "
            first += f"({', '.join(problems)})"
        else:
            first = "This run will work, as far as can be seen"
        told = [f"{_count(len(warnings), 'warning')} ({', '.join(warnings)})"] if warnings else []
        told += [f"not looked at: {', '.join(unseen)}"] if unseen else []
        first += f"; {'; '.join(told)}" if told else ""
        next_line = "First: repair what stands above with ✗, then look again" if problems else start
        return [f"{first}. {seconds:.0f} s.", outlook, next_line]

    def close(self, lines: Sequence[str]) -> None:
        """Print the verdict."""
        style = "bold red" if self.problems else "bold green"
        self.console.print()
        self.console.print(Text(lines[0], style=style))
        for line in lines[1:]:
            self.console.print(Text(line), soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
