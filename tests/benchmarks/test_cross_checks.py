"""What the cross-checks make of another library's batches; without it they say so."""

import importlib.util

import torch

from benchmarks import cross_checks, cross_kit, cross_policy
from kd_lightning.types import IGNORE


def test_without_the_peer(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "trl" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    report = cross_checks.main(["--preset", "tiny", "--out", str(tmp_path)])
    assert not report.rows and "make bench-peers" in report.notes[0]


def test_rows_padded_on_either_side_are_the_same():
    ids = torch.tensor([[5, 6, 7, 8], [0, 3, 4, 9]])
    there = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    answer = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    left = cross_kit.batch_of(ids, there, answer)
    right = cross_kit.batch_of(
        torch.tensor([[5, 6, 7, 8], [3, 4, 9, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]]),
    )
    for batch in (left, right):
        assert batch.input_ids.tolist() == [[5, 6, 7], [3, 4, 0]]
        assert batch.targets.tolist() == [[IGNORE, 7, 8], [IGNORE, 9, IGNORE]]
        assert batch.lengths == (3, 2)


def test_words_find_their_places_when_rows_are_sorted():
    inputs = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7], [0, 5]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1], [0, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0], [3, 4, 8], [9, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
    }
    old = torch.tensor([[0.1, 0.2, 7.0], [0.3, 0.4, 0.5], [0.6, 7.0, 7.0]])
    batch = cross_policy.drawn(inputs, behaviour=old)
    assert batch.ids == ("0", "2", "1") and batch.group.tolist() == [0, 0, 1]
    where = batch.targets != IGNORE
    assert batch.targets[where].tolist() == [1, 2, 9, 3, 4, 8]
    torch.testing.assert_close(batch.behaviour[where], torch.tensor([0.1, 0.2, 0.6, 0.3, 0.4, 0.5]))
    assert batch.reward[1] == cross_policy.reward_of([[9]])[0]
