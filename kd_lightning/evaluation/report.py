"""Measured models side by side: a table for the terminal, for a file and for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from kd_lightning.evaluation.measure import Measured

Better = Literal["up", "down", "none"]
NATS = "nats/token"
ARROWS = {"up": " ↑", "down": " ↓", "none": ""}


@dataclass(frozen=True)
class Metric:
    """How a number is shown."""

    label: str
    """For people."""
    better: Better
    """Which direction is an improvement."""
    unit: str = ""
    """Of the number; `%` shows a share of 1 as per cent."""

    def show(self, value: float | None) -> str:
        """The number as text, or a dash."""
        if value is None or not math.isfinite(value):
            return "–" if value is None else str(value)
        if self.unit == "%":
            return f"{100 * value:.1f}%"
        digits = (
            0 if abs(value) >= 1e4 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 4
        )
        return f"{value:,.{digits}f}"


TOKEN_METRICS = {
    "perplexity": Metric("perplexity", "down"),
    "ce": Metric("cross-entropy", "down", NATS),
    "kl": Metric("KL(teacher ‖ model)", "down", NATS),
    "reverse_kl": Metric("KL(model ‖ teacher)", "down", NATS),
    "jsd": Metric("Jensen–Shannon", "down", NATS),
    "agreement": Metric("agreement with teacher", "up", "%"),
    "entropy": Metric("entropy", "none", NATS),
}
"""The token statistics that a comparison shows, in this order, after the grades."""

GRADES = {"rouge_l": "ROUGE-L", "f1": "F1"}
"""Grades whose names are not simply their words."""

HEADLINE = ("kl", "agreement")
"""What is shown for each skill besides the grades."""


def grade_metric(name: str) -> Metric:
    """A skill's own grade: a share of 1, more is better."""
    return Metric(GRADES.get(name, name.replace("_", " ")), "up", "%")


def metric_of(name: str) -> Metric:
    """How the metric of this name is shown."""
    return TOKEN_METRICS.get(name) or grade_metric(name)


def grade_names(columns: Sequence[Measured]) -> list[str]:
    """Names of the grades, in the order of the skills' graders."""
    return list({n: None for c in columns for a in c.answers for n in a.grades})


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    metric: str
    """The metric's name."""
    skill: str
    """The skill, '' for everything."""
    values: tuple[float | None, ...]
    """One for each column."""

    @property
    def label(self) -> str:
        """With the direction that is better."""
        shown = metric_of(self.metric)
        unit = ", nats" if shown.unit == NATS else ""
        return shown.label + unit + ARROWS[shown.better]

    def best(self, candidates: Sequence[int]) -> int | None:
        """The column with the best value among `candidates`, if there is one to choose."""
        better = metric_of(self.metric).better
        found = {i: v for i in candidates if (v := self.values[i]) is not None and math.isfinite(v)}
        if better == "none" or len(found) < 2 or len(set(found.values())) == 1:
            return None
        choose = max if better == "up" else min
        return choose(found, key=lambda i: found[i])


def comparison_rows(columns: Sequence[Measured]) -> list[Row]:
    """Everything first, then, where there are several skills, each of them."""
    grades = grade_names(columns)
    tables = [(c.metrics, c.by_skill) for c in columns]
    rows = [
        Row(name, "", tuple(metrics.get(name) for metrics, _ in tables))
        for name in (*grades, *TOKEN_METRICS)
    ]
    skills = list({s: None for _, by_skill in tables for s in by_skill})
    if len(skills) > 1:
        rows += [
            Row(name, skill, tuple(table.get(skill, {}).get(name) for _, table in tables))
            for skill in skills
            for name in (*grades, *HEADLINE)
        ]
    return [row for row in rows if any(value is not None for value in row.values)]


def comparison_table(columns: Sequence[Measured], title: str = "") -> Table:
    """For the terminal; the best student's value of each row stands out."""
    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column("metric (nats: per token)", no_wrap=True)
    for column in columns:
        table.add_column(column.name, justify="right")
    counts = [f"{c.parameters:,}" if c.parameters else "–" for c in columns]
    table.add_row("parameters", *counts, style="dim", end_section=True)
    students = [i for i, c in enumerate(columns) if c.name != "teacher"]
    skill = ""
    for row in comparison_rows(columns):
        if row.skill != skill:
            table.add_section()
            table.add_row(f"[bold]{row.skill}[/bold]")
            skill = row.skill
        best = row.best(students)
        cells = [
            f"[bold green]{text}[/bold green]" if i == best else text
            for i, text in enumerate(metric_of(row.metric).show(v) for v in row.values)
        ]
        table.add_row(f"  {row.label}" if row.skill else row.label, *cells)
    return table


def comparison_markdown(columns: Sequence[Measured]) -> str:
    """The same for a file; the best student's value is bold."""
    lines = [
        "| metric | " + " | ".join(c.name for c in columns) + " |",
        "|---|" + "---:|" * len(columns),
        "| parameters | " + " | ".join(f"{c.parameters:,}" for c in columns) + " |",
    ]
    students = [i for i, c in enumerate(columns) if c.name != "teacher"]
    for row in comparison_rows(columns):
        best = row.best(students)
        cells = [metric_of(row.metric).show(value) for value in row.values]
        cells = [f"**{cell}**" if i == best else cell for i, cell in enumerate(cells)]
        label = f"{row.skill}: {row.label}" if row.skill else row.label
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_dict(columns: Sequence[Measured], **facts: Any) -> dict[str, Any]:
    """For programs: numbers by column, without the answers."""
    return {
        **facts,
        "grades": grade_names(columns),
        "columns": {
            c.name: {
                "parameters": c.parameters,
                "answers": len(c.answers),
                "metrics": c.metrics,
                "skills": c.by_skill,
                "by_position": c.by_position,
            }
            for c in columns
        },
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same structure with None for NaN and infinities, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def answer_rows(columns: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each example once, with what every column answered."""
    rows: dict[str, dict[str, Any]] = {}
    for column in columns:
        for a in column.answers:
            row = rows.setdefault(
                a.id,
                {
                    "id": a.id,
                    "skill": a.skill,
                    "prompt": a.prompt,
                    "references": list(a.references),
                    "answers": {},
                },
            )
            row["answers"][column.name] = {
                "text": a.text,
                "finished": a.finished,
                "grades": dict(a.grades),
                "kl": a.kl,
            }
    return list(rows.values())


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(finite(row), ensure_ascii=False, allow_nan=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
