"""The on-policy benchmarks run on small shapes; what they measure is what they say."""

import importlib.util

import pytest
import torch

from benchmarks import on_policy_peers, on_policy_run, on_policy_stories, stories
from kd_lightning.models.causal import CausalLM
from kd_lightning.types import Batch, ModelOutput

SMALL = ["--preset", "tiny", "--repeats", "1"]


@pytest.fixture
def quietly(shared, monkeypatch):
    """The real pair, one thread, no package of another library."""
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "trl" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_on_and_off_policy(tmp_path, quietly):
    where = ["--out", str(tmp_path), "--folder", str(tmp_path / "starts")]
    arms = ["off-policy forward KL", "on-policy JSD"]
    report = on_policy_stories.main([*SMALL, *where, "--seeds", "5", "--arms", *arms])
    assert [row["arm"] for row in report.rows] == ["common start", *arms]
    assert all(row["steps"] > 0 for row in report.rows[1:])
    seconds = on_policy_stories.SIZES["tiny"].seconds
    assert all(seconds <= row["seconds"] < 3 * seconds for row in report.rows[1:])
    assert (tmp_path / "on_policy_stories.png").is_file()


def test_beside_peers_that_are_absent(tmp_path, quietly):
    where = ["--out", str(tmp_path), "--folder", str(tmp_path / "starts")]
    report = on_policy_peers.main([*SMALL, *where])
    assert [row["way"] for row in report.rows] == ["start", "ours"]
    assert any("trl is not installed" in note for note in report.notes)
    assert (tmp_path / "on_policy_peers.json").is_file()


def test_every_way_is_asked_the_same(quietly):
    job = on_policy_run.Job(str(stories.TEACHER), "", "", rows=2, steps=2)
    asked = on_policy_run.documents(job)
    known = stories.tokenizer()
    batches = on_policy_run.Given(job).batches
    assert len(asked) == 4 and [len(batch) for batch in batches] == [2, 2]
    for (text, ids, given), row in zip(
        asked, [r for b in batches for r in b.input_ids], strict=True
    ):
        assert known(text)["input_ids"] == ids[:given] == row[:given].tolist()
        assert given == stories.PROMPT + 1


def test_divergences_are_those_of_the_tokens_drawn(quietly):
    teacher = stories.teacher()
    rows = stories.held_back(teacher, 4)
    same = teacher.model
    found = stories.free_running(same, teacher, rows, 2, 20, 8)
    assert abs(found["kl"]) < 1e-6 and abs(found["reverse_kl"]) < 1e-6
    assert found["tokens"] <= 4 * 2 * 20 and found["early_tokens"] == 4 * 2 * 8
    assert abs(stories.forced(same, teacher, rows)["kl"]) < 1e-6

    class Sharper(CausalLM):
        """The same model at temperature 1/2: log q = 2 log p - log sum p^2."""

        def forward(self, batch: Batch, *_: object) -> ModelOutput:
            made = super().forward(batch)
            made.hidden = 2 * made.hidden
            return made

    sharp = Sharper(same.model, same.tokenizer, attention=same.attention)
    found = stories.free_running(sharp, teacher, rows, 2, 20, 8)
    p = log_p(teacher, rows).softmax(-1)
    told = stories.forced(sharp, teacher, rows)
    expected = (p * (p.log() - (2 * p.log()).log_softmax(-1))).sum(-1).mean()
    assert abs(told["kl"] - float(expected)) < 1e-4
    assert found["reverse_kl"] > 0.01 and found["kl_se"] > 0


def log_p(teacher, rows):
    """Logits of the teacher at every learned token."""
    parts = []
    for batch in rows:
        logits = teacher.model(batch).logits
        parts.append(logits[batch.targets != -100])
    return torch.cat(parts).double()
