"""What all benchmarks rely on."""

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Report, alone, growth, interleaved, table


def test_rounds_visit_all_ways_on_fresh_data_and_the_first_does_not_count():
    order, made = [], []
    clock = iter(range(1000))
    ways = {name: lambda data, name=name: order.append((name, data)) for name in "abc"}

    def fresh():
        made.append(len(made))
        return made[-1]

    seconds = interleaved(ways, fresh, 2, clock=lambda: next(clock))
    assert "".join(name for name, _ in order) == "abcbcacab"
    assert [data for _, data in order] == list(range(9))
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_growth_is_the_peak_and_not_what_is_left():
    growth(lambda: None)
    for _ in range(2):  # a former peak is forgotten
        grown = growth(lambda: torch.ones(50 * 2**20 // 4).sum())
        assert 45 * 2**20 < grown < 90 * 2**20


def test_alone_is_another_process():
    assert alone(os.getpid) != os.getpid()
    assert alone(os.getpid, preset="tiny") == os.getpid()


def test_a_report_says_what_is_met_and_missed(tmp_path, capsys):
    report = Report("loss", "a title")
    report.row(way="ours", seconds=0.5)
    report.row(way="theirs", seconds=1.0)
    report.at_least("theirs / ours", 2.0, 1.5)
    report.at_most("bytes", 3.0, 2.0)
    report.finish(tmp_path, {"panel": {"ours": 0.5, "theirs": 1.0}}, "seconds")
    told = capsys.readouterr().out
    assert "MISSED" in told and ">= 1.5" in told
    written = json.loads((tmp_path / "loss.json").read_text())
    assert [target["met"] for target in written["targets"]] == [True, False]
    assert written["machine"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_other_sizes_are_held_against_nothing():
    report = Report("loss", "a title", preset="tiny")
    report.at_least("theirs / ours", 0.1, 1.5)
    assert report.targets == []


def test_a_table_lines_up():
    lines = table([{"way": "ours", "s": 0.25}, {"way": "another", "s": 12.0}]).splitlines()
    assert lines == ["way         s", "ours     0.25", "another    12"]
