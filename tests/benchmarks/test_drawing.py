"""Engines beside each other on small shapes."""

import pytest

from benchmarks import drawing
from tests.benchmarks.test_benchmarks import run


@pytest.mark.slow
def test_all_engines_draw_the_same_words(tmp_path):
    report = run(drawing, tmp_path, "--requests", "16x1")
    assert [row["engine"] for row in report.rows] == 2 * list(drawing.ENGINES)
    assert all(row["same"] for row in report.rows)
    equal, geometric = (report.rows[i]["tokens"] for i in (0, len(drawing.ENGINES)))
    assert geometric < 0.6 * equal
