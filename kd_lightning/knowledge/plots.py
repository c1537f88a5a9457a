"""What `kd inspect` draws: records after each step, lengths of texts, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LABELS = 8
"""A field with at most so many different texts is a label, whose length says nothing."""

BLUE, GREY = "#0072B2", "#C8C8C8"


def texts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The texts of each field that has some; the records' names are none."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and name != "id":
                found.setdefault(name, []).append(value)
    return dict(sorted(found.items()))


def is_label(texts: Sequence[str]) -> bool:
    """Whether a field says one of a few things, none of them long."""
    return len(set(texts)) <= min(LABELS, len(texts) - 1) and max(map(len, texts)) <= 40


def numbers_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The numbers of each field that has different ones; names with _ before them are places."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not name.startswith("_") and np.isfinite(value):
                found.setdefault(name, []).append(float(value))
    return {name: values for name, values in sorted(found.items()) if len(set(values)) > 1}


def write_plots(
    folder: Path, card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """`steps.png`: records after each step; `lengths.png`: of texts; `numbers.png`: of scores."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {
        name: [float(len(text)) for text in texts]
        for name, texts in texts_of(rows).items()
        if not is_label(texts)
    }
    made = [_steps_plot(folder / "steps.png", card)]
    if lengths:
        made.append(
            _histograms(folder / "lengths.png", lengths, "Length of each text", "characters")
        )
    if numbers := numbers_of(rows):
        made.append(_histograms(folder / "numbers.png", numbers, "Numbers in the records", ""))
    return made


def _steps_plot(path: Path, card: Mapping[str, Any]) -> Path:
    """Grey: what came in and fell."""
    steps = card["steps"]
    figure = Figure(figsize=(8, 1.2 + 0.4 * (len(steps) + 1)), layout="constrained")
    axes = figure.subplots()
    names = ["seeds", *(step["name"] for step in steps)]
    counts = [card["seeds"]["records"], *(step["given"] for step in steps)]
    before = [counts[0], *(step["taken"] for step in steps)]
    axes.barh(names, before, color=GREY)
    bars = axes.barh(names, counts, color=BLUE)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    fell = any(b > c for b, c in zip(before, counts, strict=True))
    axes.set(title="Records after each step" + (" (grey: fell)" if fell else ""), xlabel="records")
    axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def _histograms(path: Path, told: Mapping[str, Sequence[float]], title: str, unit: str) -> Path:
    """One below the other, each with an axis of its own: fields differ a hundredfold."""
    figure = Figure(figsize=(8, 0.6 + 1.7 * len(told)), layout="constrained")
    grid = figure.subplots(len(told), 1, squeeze=False)[:, 0]
    for axes, (name, values) in zip(grid, told.items(), strict=True):
        axes.hist(values, bins=_edges(values), color=BLUE)
        middle = float(np.median(values))
        axes.axvline(middle, color="black", linewidth=1)
        axes.set_title(f"{name} (median {middle:,.4g})", loc="left", fontsize=10)
        axes.set(xlabel=unit, ylabel="records")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return _saved(figure, path)


def _edges(values: Sequence[float]) -> list[float]:
    """8 to 40 bins; of whole numbers each is as wide as whole numbers, and centred on them."""
    low, high = min(values), max(values)
    bins = min(40, max(8, len(values) // 4))
    if all(value.is_integer() for value in values):
        width = max(1, -(-int(high - low + 1) // bins))
        return [float(x) - 0.5 for x in range(int(low), int(high) + width + 1, width)]
    return [float(x) for x in np.linspace(low, high, bins + 1)]


def _saved(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
    return path
