"""Elicit, curate, train and measure by one command: the curated set makes the better student."""

from __future__ import annotations

import json

import pytest

from kd_lightning.cli import main
from tests.conftest import ROOT

CONFIG = ROOT / "configs/pipeline/demo.yaml"


def matched(folder, arm):
    told = json.loads((folder / f"round-01/measure_{arm}/comparison.json").read_text())
    return told["columns"]["student"]["metrics"]["exact_match"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_curated_beats_raw_and_random_in_three_seeds(tmp_path, monkeypatch):
    """Random is as large as curated, raw is twice as large; both hold the same systematic slips."""
    monkeypatch.chdir(ROOT)
    found = {}
    for seed in (0, 1, 2):
        folder = tmp_path / str(seed)
        assert main(["pipeline", "-c", str(CONFIG), f"--output={folder}", f"--seed={seed}"]) == 0
        for arm in ("curated", "raw", "random"):
            found.setdefault(arm, []).append(matched(folder, arm))
        card = {
            name: json.loads((folder / f"round-01/{name}/card.json").read_text())["records"]
            for name in ("curated", "raw", "random")
        }
        assert card["curated"] == card["random"] and card["raw"] == 2 * card["random"]
    print(found)
    assert min(found["curated"]) > max(found["raw"]), found
    assert min(found["curated"]) > max(found["random"]) + 0.05, found
