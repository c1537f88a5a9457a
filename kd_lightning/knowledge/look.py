"""`kd inspect`: what is in a knowledge set."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kd_lightning.data.knowledge import Knowledge
from kd_lightning.errors import KDError
from kd_lightning.knowledge.sets import readme

SHINGLE = 5
"""Words of a piece of text that two records may share."""


LABELS = 8
"""A field with at most so many different texts is a label, whose length says nothing."""


def look(argv: Sequence[str]) -> dict[str, Any]:
    """Show a set's card, samples, lengths and duplicates; write plots beside it."""
    parser = argparse.ArgumentParser(prog="kd inspect", description=__doc__)
    parser.add_argument("set", type=Path, help="folder that kd elicit wrote")
    parser.add_argument("--rows", type=int, default=3, help="samples that are shown")
    parser.add_argument("--seed", type=int, default=0, help="which samples")
    parser.add_argument("--output", type=Path, help="folder of the plots; default: SET/inspect")
    try:
        asked = parser.parse_args(list(argv))
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise KDError("write kd inspect SET [--rows=N] [--seed=N] [--output=FOLDER]") from None
    source = Knowledge(asked.set)
    rows = [dict(found.values) for split in source.splits for found in source.read(split)]
    told = statistics(rows)
    console = Console()
    console.print(_body(readme(source.card)), markup=False)
    _show_lengths(console, told)
    _show_duplicates(console, told)
    _show_samples(console, rows, asked.rows, asked.seed)
    folder = asked.output or asked.set / "inspect"
    for path in write_plots(folder, source.card, rows):
        console.print(f"plot: {path}", style="dim", soft_wrap=True)
    return told


def _body(page: str) -> str:
    return page.split("---\n", 2)[2].strip()


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lengths in words of each text field, and how many rows say again what another one said.

    `repeated`: rows whose text an earlier row has letter for letter; `shared`: mean share of a
    row's runs of five words that stand in another row too.
    """
    fields = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    found: dict[str, Any] = {}
    for name in sorted(fields - {"id"}):
        texts = [row[name] for row in rows if isinstance(row.get(name), str)]
        words = [len(text.split()) for text in texts]
        found[name] = {
            "rows": len(texts),
            "words": {q: float(np.quantile(words, q)) for q in (0.0, 0.5, 0.95, 1.0)},
            "repeated": len(texts) - len(set(texts)),
            "shared": shared(texts),
        }
    return found


def shared(texts: Sequence[str]) -> float:
    """Mean over texts of the share of their word 5-grams that another text has as well."""
    pieces = [_pieces(text) for text in texts]
    owners = Counter(piece for each in pieces for piece in each)
    shares = [sum(owners[p] > 1 for p in each) / len(each) for each in pieces if each]
    return float(np.mean(shares)) if shares else 0.0


def _pieces(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def _show_lengths(console: Console, told: Mapping[str, Any]) -> None:
    table = Table(title="words in a record")
    for heading in ("field", "records", "least", "median", "95%", "most"):
        table.add_column(heading, justify="left" if heading == "field" else "right")
    for name, each in told.items():
        least, median, high, most = (f"{v:,.0f}" for v in each["words"].values())
        table.add_row(escape(name), f"{each['rows']:,}", least, median, high, most)
    console.print(table)


def _show_duplicates(console: Console, told: Mapping[str, Any]) -> None:
    table = Table(title="said again")
    for heading in ("field", "records letter for letter", f"runs of {SHINGLE} words shared"):
        table.add_column(heading, justify="left" if heading == "field" else "right")
    for name, each in told.items():
        part = f"{each['repeated']:,} of {each['rows']:,}"
        table.add_row(escape(name), part, f"{each['shared']:.1%}")
    console.print(table)


def _show_samples(
    console: Console, rows: Sequence[Mapping[str, Any]], count: int, seed: int
) -> None:
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    for i in sorted(int(i) for i in chosen):
        console.print(f"\n[bold]{escape(str(rows[i].get('id', i)))}[/bold]")
        for name, value in rows[i].items():
            if name != "id":
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                console.print(f"  [cyan]{escape(name)}[/cyan]: {escape(text[:600])}")


def write_plots(
    folder: Path, card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """`steps.png`: records after each step; `lengths.png`: characters of each text field."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_steps_plot(folder, card), _lengths_plot(folder, rows)]


def _steps_plot(folder: Path, card: Mapping[str, Any]) -> Path:
    steps = card["steps"]
    figure = Figure(figsize=(8, 1.2 + 0.45 * (len(steps) + 1)), layout="constrained")
    axes = figure.subplots()
    names = ["seeds", *(step["name"] for step in steps)]
    counts = [card["seeds"]["records"], *(step["given"] for step in steps)]
    bars = axes.barh(names, counts, color="#0072B2")
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="Records after each step", xlabel="records")
    axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, folder / "steps.png")


def _lengths_plot(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and name != "id":
                texts.setdefault(name, []).append(value)
    shown = [name for name in sorted(texts) if len(set(texts[name])) > LABELS] or sorted(texts)[:1]
    count = max(1, len(shown))
    figure = Figure(figsize=(8, 1 + 1.6 * count), layout="constrained")
    grid = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    longest = max((len(t) for name in shown for t in texts[name]), default=1)
    width = max(1, -(-longest // 60))
    edges = np.arange(0, longest + width + 1, width) - 0.5
    for axes, name in zip(grid, shown, strict=False):
        axes.hist([len(text) for text in texts[name]], bins=list(edges), color="#0072B2")
        axes.set(ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(title="Length of each text field")
    grid[-1].set(xlabel="characters")
    return _saved(figure, folder / "lengths.png")


def _saved(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
    return path
