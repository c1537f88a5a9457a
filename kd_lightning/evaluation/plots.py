"""Curves of a run and comparisons of models, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from kd_lightning.evaluation.measure import Measured
from kd_lightning.evaluation.report import ARROWS, grade_names, metric_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
"""Distinguishable with colour blindness. Source: Okabe, Ito 2008, Color Universal Design."""
TEACHER = "#444444"

Curve = tuple[list[float], list[float]]  # steps, values


def curves(rows: Sequence[Mapping[str, str]]) -> dict[str, Curve]:
    """Columns of a metrics.csv as curves; of a step that was logged again, the last value."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if not row.get("step"):
            continue
        for name, text in row.items():
            if name != "step" and text:
                found.setdefault(name, {})[float(row["step"])] = float(text)
    return {
        name: ([*sorted(points)], [points[s] for s in sorted(points)])
        for name, points in found.items()
    }


def write_plots(
    folder: Path, columns: Sequence[Measured], metrics: Sequence[Mapping[str, str]] = ()
) -> dict[str, Path]:
    """Every plot that there is something to show in, by name."""
    lines = curves(metrics)
    figures = {
        "loss": curve_figure(lines, "loss", "loss", "Loss"),
        "kl": curve_figure(
            lines, "kl", "KL(teacher ‖ student) (nats/token)", "Distance from the teacher"
        ),
        "kl_by_position": position_figure(
            columns,
            "kl",
            "KL(teacher ‖ model) (nats/token)",
            "Distance from the teacher by position",
        ),
        "agreement_by_position": position_figure(
            columns,
            "agreement",
            "same most likely token (share)",
            "Agreement with the teacher by position",
        ),
        "comparison": headline_figure(columns),
    }
    written: dict[str, Path] = {}
    for name, figure in figures.items():
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            written[name] = folder / f"{name}.png"
            FigureCanvasAgg(figure)
            figure.savefig(written[name], dpi=150)
    return written


def curve_figure(lines: Mapping[str, Curve], key: str, label: str, title: str) -> Figure | None:
    """Training (its points and their running mean) and validation over optimizer steps."""
    train, val = lines.get(f"train/{key}"), lines.get(f"val/{key}")
    if train is None and val is None:
        return None
    figure, axes = _new(title)
    values: list[float] = []
    if train is not None:
        steps, points = train
        many = len(points) > 20
        smooth = _running_mean(points, max(1, len(points) // 20)) if many else points
        if many:
            axes.plot(steps, points, color=COLOURS[0], alpha=0.25, linewidth=1)
        name = "training (running mean)" if many else "training"
        axes.plot(steps, smooth, color=COLOURS[0], label=name, marker=_marker(points))
        values += points
    if val is not None:
        axes.plot(*val, color=COLOURS[5], label="validation", marker="o", markersize=4)
        values += val[1]
    positive = [v for v in values if v > 0]
    if len(positive) == len(values) and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        axes.set_ylim(bottom=min(0.0, min(values)))
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_ylabel(label)
    axes.legend(frameon=False)
    return figure


def position_figure(columns: Sequence[Measured], key: str, label: str, title: str) -> Figure | None:
    """A metric over the position in the answer, in bins that widen where tokens are few."""
    shown = [c for c in columns if c.compared and c.by_position["position"]]
    if not shown:
        return None
    figure, axes = _new(title)
    for colour, column in zip(_colours(shown), shown, strict=True):
        where, values = _binned(column.by_position, key)
        axes.plot(where, values, color=colour, label=column.name, marker="o", markersize=3.5)
    axes.set_xlabel("position in the answer (tokens)")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if key == "agreement":
        highest = max(max(column.by_position["agreement"]) for column in shown)
        axes.set_ylim(0, 1.02 if highest > 0.5 else max(0.02, 1.25 * highest))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False)
    return figure


def headline_figure(columns: Sequence[Measured]) -> Figure | None:
    """A bar for each model: the skills' headline grades, agreement, KL, perplexity."""
    if not columns:
        return None
    tables = [c.metrics for c in columns]
    names = [*grade_names(columns)[:2], "agreement", "kl", "perplexity"]
    names = [n for n in names if any(n in t for t in tables)]
    figure = Figure(figsize=(2.9 * len(names) + 0.6, 3.9), layout="constrained")
    for i, name in enumerate(names):
        metric = metric_of(name)
        axes = figure.add_subplot(1, len(names), i + 1)
        given = [
            (c.name, colour, t[name])
            for c, colour, t in zip(columns, _colours(columns), tables, strict=True)
            if name in t
        ]
        heights = [value for _, _, value in given]
        bars = axes.bar(range(len(given)), heights, color=[c for _, c, _ in given], width=0.7)
        axes.bar_label(bars, [metric.show(v) for v in heights], padding=2, fontsize=8)
        axes.set_xticks(range(len(given)), [n.replace(" ", "\n", 1) for n, _, _ in given])
        axes.tick_params(axis="x", labelsize=8, length=0)
        axes.set_xlim(-0.6, max(len(given), 2) - 0.4)
        unit = f"\n({metric.unit})" if metric.unit not in ("", "%") else ""
        axes.set_title(metric.label + ARROWS[metric.better] + unit, fontsize=10)
        _plain(axes)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        if metric.unit == "%":
            axes.set_ylim(0, 1.12)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _new(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def _colours(columns: Sequence[Measured]) -> list[str]:
    students = iter(COLOURS * (1 + len(columns) // len(COLOURS)))
    return [TEACHER if c.name == "teacher" else next(students) for c in columns]


def _marker(points: Sequence[float]) -> Any:
    return "o" if len(points) == 1 else None


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the `width` points on both sides; of fewer on both at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(width, np.minimum(at, len(values) - 1 - at))
    low, high = at - reach, at + reach + 1
    return list((total[high] - total[low]) / (high - low))


def _binned(table: Mapping[str, list[float]], key: str, bins: int = 24) -> Curve:
    """Weighted means in at most `bins` bins of about equal numbers of tokens."""
    position, tokens = np.array(table["position"]), np.array(table["tokens"])
    values = np.array(table[key])
    if len(position) <= bins:
        return list(position), list(values)
    done = np.cumsum(tokens) - tokens / 2
    index = np.minimum((bins * done / tokens.sum()).astype(int), bins - 1)
    where, means = [], []
    for i in np.unique(index):
        inside = index == i
        weight = tokens[inside]
        where.append(float((position[inside] * weight).sum() / weight.sum()))
        means.append(float((values[inside] * weight).sum() / weight.sum()))
    return where, means
