"""What came of the rounds, in one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_lightning import files
from kd_lightning.errors import KDError
from kd_lightning.evaluation.report import metric_of


def result_of(command: str, folder: Path) -> dict[str, Any]:
    """The numbers that a finished stage has left in its folder."""
    if command == "elicit":
        return _of_set(_json(folder / "card.json"))
    if command == "evaluate":
        told = _json(folder / "comparison.json")
        metrics = {name: column["metrics"] for name, column in told["columns"].items()}
        return {"columns": metrics, "grades": told["grades"]}
    if command == "fit":
        return {"last": _last(folder / "metrics.csv"), "student": _weights(folder / "student")}
    if command == "export":
        return {"student": _weights(folder)}
    return {"files": {p.name: files.digest_of(p) for p in sorted(folder.glob("*.json"))}}


def _of_set(card: Mapping[str, Any]) -> dict[str, Any]:
    steps = [{k: step[k] for k in ("name", "taken", "given", "dropped")} for step in card["steps"]]
    return {
        "records": card["records"],
        "steps": steps,
        "spend": card["spend"],
        "shards": [shard["sha256"] for shard in card["shards"]],
    }


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: files.digest_of(path) for path in sorted(folder.glob("*.safetensors"))}


def _last(path: Path) -> dict[str, float]:
    """The last value of each validation column of a metrics.csv."""
    found: dict[str, float] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.update({k: float(v) for k, v in row.items() if v and k.startswith("val/")})
    return found


def _json(path: Path) -> Any:
    if not path.is_file():
        raise KDError(f"the stage ended without {path.name} in {path.parent}")
    return json.loads(path.read_text(encoding="utf-8"))


def measured(result: Mapping[str, Any], metric: str, stage: str) -> float:
    """A metric of an evaluate stage's student."""
    metrics = result.get("columns", {}).get("student", {})
    if metric not in metrics:
        known = ", ".join(metrics) or "none"
        raise KDError(f"until: stage {stage} measures no {metric!r} of its student ({known})")
    return float(metrics[metric])


def write_summary(folder: Path, table: Sequence[Mapping[str, Any]]) -> str:
    """summary.json and summary.md; the latter's text."""
    files.write_json(folder / "summary.json", [dict(row) for row in table])
    cells = [_cells({name: entry["result"] for name, entry in row.items()}) for row in table]
    names = list(dict.fromkeys(name for row in cells for name in row))
    rounds = [f"round {number}" for number in range(1, len(table) + 1)]
    lines = ["| " + " | ".join(["stage", "number", *rounds]) + " |"]
    lines.append("|---" * (2 + len(rounds)) + "|")
    for stage, what in names:
        shown = [row.get((stage, what), "") for row in cells]
        lines.append("| " + " | ".join([stage, what, *shown]) + " |")
    text = "\n".join(lines) + "\n"
    files.write(folder / "summary.md", [text.encode()])
    return text


def _cells(results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(stage, what) to a number as text."""
    found: dict[tuple[str, str], str] = {}
    for name, result in results.items():
        if "records" in result:
            found[name, "records"] = f"{result['records']:,}"
            if result["spend"]["requests"]:
                found[name, "requests"] = f"{result['spend']['requests']:,}"
            if result["spend"]["money"]:
                found[name, "spent"] = f"{result['spend']['money']:.2f}"
        elif "columns" in result:
            student = result["columns"]["student"]
            for metric in result["grades"] or ["kl"]:
                told = metric_of(metric)
                found[name, told.label] = told.show(student.get(metric))
        elif "val/loss" in result.get("last", {}):
            found[name, "validation loss"] = f"{result['last']['val/loss']:.4g}"
    return found
