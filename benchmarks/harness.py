"""What every benchmark needs: interleaved medians, peak memory, a table, JSON and a plot."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

VERSIONS = ("torch", "transformers", "lightning", "trl", "liger-kernel", "torchtune", "triton")
"""Packages whose version stands beside every figure."""

OURS = "ours"
"""How the names of our own ways begin."""


def parser(text: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes; `text`: its module's docstring."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--preset", choices=["full", "tiny"], default="full", help="size of the work")
    made.add_argument("--repeats", type=int, default=3, help="rounds that count, at least 1")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and plot")
    return made


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    made = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": found,
    }
    if torch.cuda.is_available():
        made["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        made["load"] = round(os.getloadavg()[0], 1)
    return made


# ------------------------------------------------------------------ time
def interleaved(
    ways: Mapping[str, Callable[[Any], object]],
    fresh: Callable[[], Any],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    warm: bool = False,
) -> dict[str, list[float]]:
    """CPU seconds of each way in every round; all rounds visit all ways, on data made anew.

    A first round warms up and does not count, unless all ways are `warm`. Each round begins with
    another way.
    """
    seen: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(warm, repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            data = fresh()
            gc.collect(1)
            start = clock()
            ways[name](data)
            if repeat:
                seen[name].append(clock() - start)
            del data
    return seen


def median(values: Sequence[float]) -> float:
    """The middle of the rounds."""
    return statistics.median(values)


# ------------------------------------------------------------------ memory
def counter(name: str) -> int:
    """Bytes of one of the process's memory counters; 0 where the system has none."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+)", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def growth(work: Callable[[], object]) -> int:
    """By how many bytes this process's memory grows at most while `work` runs (Linux)."""
    gc.collect()
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # the peak starts anew
    before = counter("VmRSS")
    work()
    return max(0, counter("VmHWM") - before)


def alone(function: Callable[..., Any], *arguments: Any, preset: str = "full") -> Any:
    """The function's result from a fresh process, in which nothing has been allocated.

    At another size than the full one: from this process.
    """
    if preset != "full":
        return function(*arguments)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# ------------------------------------------------------------------ what is shown
@dataclass
class Report:
    """One benchmark's figures: rows for the table, and what they are held against."""

    name: str
    title: str
    preset: str = "full"
    """Figures of other sizes are held against nothing."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, **cells: Any) -> None:
        """One line of the table, told as soon as it is known."""
        self.rows.append(cells)
        print("  " + "  ".join(_cell(value) for value in cells.values()), flush=True)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """A figure that should not be smaller."""
        self._hold(what, value, f">= {limit:g}", value >= limit)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A figure that should not be larger."""
        self._hold(what, value, f"<= {limit:.4g}", value <= limit)

    def _hold(self, what: str, value: float, target: str, met: bool) -> None:
        if self.preset == "full":
            self.targets.append({"what": what, "value": value, "target": target, "met": met})

    def finish(self, out: Path, panels: Mapping[str, Mapping[str, float]], unit: str) -> None:
        """Print the tables; write NAME.json and NAME.png (a panel of bars each)."""
        where = machine()
        command = f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip()
        facts = {"command": command, "machine": where, "rows": self.rows, "targets": self.targets}
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{self.name}.json"
        file.write_text(json.dumps({**facts, "notes": self.notes}, indent=1) + "\n")
        print(f"\n{self.title}")
        print(f"{command}   {where['date']}, {where['cores']} cores, {where['threads']} thread(s)")
        print(table(self.rows))
        for note in self.notes:
            print(f"  {note}")
        if self.targets:
            told = [{**t, "met": "met" if t["met"] else "MISSED"} for t in self.targets]
            print(table(told))
        if panels:
            plot(out / f"{self.name}.png", self.title, panels, unit)
        print(f"-> {file}", flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text; numbers to four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    lines = [columns, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    left = [not rows or isinstance(rows[0].get(name, ""), str) for name in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if plain else cell.rjust(width)
            for cell, width, plain in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"


def plot(path: Path, title: str, panels: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """Horizontal bars, one panel beside the other; ours stand out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    most = max(len(bars) for bars in panels.values())
    size = (5.2 * len(panels), 1.3 + 0.38 * most)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, bars) in zip(axes[0], panels.items(), strict=True):
        names = list(bars)[::-1]
        values = [bars[label] for label in names]
        colours = ["#c8553d" if label.startswith(OURS) else "#8d99ae" for label in names]
        drawn = axis.barh(names, values, color=colours)
        axis.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(unit)
        axis.set_xmargin(0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
