"""`kd inspect`: what is in a knowledge set."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from kd_lightning.data.knowledge import Knowledge
from kd_lightning.errors import KDError
from kd_lightning.knowledge.plots import is_label, texts_of, write_plots
from kd_lightning.knowledge.sets import readme

SHINGLE = 5
"""Words of a piece of text that two records may share."""


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
    console.print(Markdown(_body(readme(source.card))))
    _show_lengths(console, told)
    _show_duplicates(console, told)
    _show_labels(console, rows)
    _show_samples(console, rows, asked.rows, asked.seed)
    folder = asked.output or asked.set / "inspect"
    for path in write_plots(folder, source.card, rows):
        console.print(f"plot: {path}", style="dim", soft_wrap=True)
    return told


def _body(page: str) -> str:
    return page.split("---\n", 2)[2].strip()


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lengths in words of each text, and how many rows say again what another one said.

    `repeated`: rows whose text an earlier row has letter for letter; `shared`: mean share of a
    row's runs of five words that stand in another row too.
    """
    found: dict[str, Any] = {}
    for name, texts in texts_of(rows).items():
        if is_label(texts):
            continue
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


def _show_labels(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    labels = {name: texts for name, texts in texts_of(rows).items() if is_label(texts)}
    if not labels:
        return
    table = Table(title="labels")
    table.add_column("field")
    table.add_column("records of each")
    for name, texts in labels.items():
        told = ", ".join(f"{t or '(empty)'} {n:,}" for t, n in Counter(texts).most_common())
        table.add_row(escape(name), escape(told))
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
