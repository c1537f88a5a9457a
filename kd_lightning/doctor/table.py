"""Memory as a table."""

from __future__ import annotations

from rich import box
from rich.table import Table

from kd_lightning.doctor.machine import Machine, shown
from kd_lightning.doctor.memory import Estimate
from kd_lightning.doctor.parts import BUCKETS, GATHERED, ORDER, REST

IF_ANY = (GATHERED, BUCKETS, REST)
"""Parts of several processes or of a GPU: shown where there are some."""


def memory_table(estimate: Estimate, machine: Machine) -> Table:
    """A line for each part, the sum, and what the device has.

    All parts are those of one moment, the worst: gradients are 0 where none exist then.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("one rank, at the worst moment", style="dim")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right", style="dim")
    total = max(1, estimate.total)
    for name in ORDER:
        size = estimate.parts.get(name, 0)
        if not size and name in IF_ANY:
            continue
        table.add_row(name, shown(size) if size else "0", f"{size / total:.0%}" if size else "")
    table.add_section()
    table.add_row("together", shown(estimate.total), "", style="bold")
    if machine.memory is not None:
        has = "of the device" if machine.device == "cuda" else "free on this machine"
        table.add_row(has, shown(machine.memory), f"{estimate.total / machine.memory:.0%}")
    return table
