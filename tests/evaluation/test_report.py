from __future__ import annotations

import io
import json

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from kd_lightning.evaluation.measure import POSITIONS, Answer, Measured
from kd_lightning.evaluation.plots import curves, write_plots
from kd_lightning.evaluation.report import (
    comparison_dict,
    comparison_markdown,
    comparison_rows,
    comparison_table,
    write_json,
)
from kd_lightning.metrics.agreement import STATISTICS


def column(name: str, kl: float, grade: float, skills=("a", "b"), compared=True) -> Measured:
    sums = torch.zeros(len(skills), len(STATISTICS), dtype=torch.float64)
    sums[:, 0] = 10.0
    sums[:, STATISTICS.index("kl")] = kl * 10
    sums[:, STATISTICS.index("ce")] = (kl + 1) * 10
    sums[:, STATISTICS.index("agreement")] = 5.0
    positions = torch.zeros(POSITIONS, len(STATISTICS), dtype=torch.float64)
    positions[:60] = sums.sum(0) / 60
    answers = tuple(
        Answer(f"{s}-{i}", s, "ask", ("yes",), "no", True, {"exact_match": grade})
        for s in skills
        for i in range(2)
    )
    return Measured(name, 1000, tuple(skills), sums, positions, compared, answers)


COLUMNS = [
    column("teacher", 0.5, 1.0, compared=False),
    column("student before", 3.0, 0.0),
    column("student after", 0.25, 0.75),
]


def test_rows_have_the_values_of_the_columns():
    rows = {(row.skill, row.metric): row for row in comparison_rows(COLUMNS)}
    assert rows["", "kl"].values == (None, pytest.approx(3.0), pytest.approx(0.25))
    assert rows["", "exact_match"].values == (1.0, 0.0, 0.75)
    assert rows["b", "exact_match"].values == (1.0, 0.0, 0.75)
    assert rows["", "kl"].label.endswith("↓") and rows["", "exact_match"].label.endswith("↑")


def test_the_best_student_stands_out_and_the_teacher_never():
    rows = {(row.skill, row.metric): row for row in comparison_rows(COLUMNS)}
    assert rows["", "kl"].best([1, 2]) == 2  # down is better
    assert rows["", "exact_match"].best([1, 2]) == 2  # up is better
    assert rows["", "agreement"].best([1, 2]) is None  # equal
    markdown = comparison_markdown(COLUMNS)
    assert "| ROUGE" not in markdown
    assert "| exact match ↑ | 100.0% | 0.0% | **75.0%** |" in markdown


def test_the_table_fits_a_terminal_of_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(COLUMNS, "title"))
    text = console.export_text()
    assert "KL(teacher ‖ model), nats ↓" in text and "0.2500" in text and "…" not in text
    assert text.count("exact match ↑") == 3  # everything, and two skills


def test_one_skill_is_not_repeated():
    one = [column("student", 1.0, 0.5, skills=("only",))]
    assert {row.skill for row in comparison_rows(one)} == {""}


def test_json_has_no_nan(tmp_path):
    content = comparison_dict(COLUMNS, split="test", odd=float("nan"))
    write_json(tmp_path / "a" / "c.json", content)
    read = json.loads((tmp_path / "a" / "c.json").read_text())
    assert read["odd"] is None and read["split"] == "test"
    assert read["columns"]["student after"]["metrics"]["kl"] == pytest.approx(0.25)
    assert read["columns"]["student after"]["skills"]["a"]["exact_match"] == 0.75
    assert len(read["columns"]["student after"]["by_position"]["kl"]) == 60


def test_curves_keep_the_last_value_of_a_step():
    rows = [
        {"step": "2", "train/loss": "3.0", "val/loss": ""},
        {"step": "1", "train/loss": "4.0", "val/loss": ""},
        {"step": "2", "train/loss": "2.0", "val/loss": "1.5"},
        {"step": "", "train/loss": "9.0", "val/loss": ""},
    ]
    assert curves(rows) == {"train/loss": ([1.0, 2.0], [4.0, 2.0]), "val/loss": ([2.0], [1.5])}


def test_plots_are_drawn(tmp_path):
    rows = [
        {"step": str(i), "train/loss": str(5 / (i + 1)), "train/kl": str(4 / (i + 1))}
        for i in range(50)
    ]
    rows += [{"step": "25", "val/loss": "0.3", "val/kl": "0.2"}]
    written = write_plots(tmp_path, COLUMNS, rows)
    assert set(written) == {
        "loss",
        "kl",
        "kl_by_position",
        "agreement_by_position",
        "comparison",
    }
    for name, path in written.items():
        image = imread(path)
        assert image.shape[0] >= 400 and image.shape[1] >= 600, name
        ink = (image[..., :3].min(-1) < 0.95).mean()
        assert 0.005 < ink < 0.6, name  # neither empty nor smeared


def test_nothing_to_show_draws_nothing(tmp_path):
    alone = column("student", 1.0, 0.5, compared=False)
    assert set(write_plots(tmp_path, [alone])) == {"comparison"}
