"""Every benchmark runs on small shapes, without peers; what it says about them."""

import importlib.util

import pytest
import torch

from benchmarks import accuracy, gpu, loss, memory, overhead, packing, peers, step, vllm_draws
from kd_lightning.types import IGNORE
from tests.teachers import servers


@pytest.fixture
def no_peers(monkeypatch):
    """No package of another library, installed or not."""
    find = importlib.util.find_spec
    names = ("trl", "liger_kernel", "torchtune")
    hidden = lambda name, *rest: None if name in names else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)


def run(module, folder, *more):
    threads = torch.get_num_threads()
    try:
        report = module.main(["--preset", "tiny", "--repeats", "1", "--out", str(folder), *more])
    finally:
        torch.set_num_threads(threads)
    name = module.__name__.split(".")[-1]
    assert (folder / f"{name}.json").is_file() and (folder / f"{name}.png").is_file()
    assert report.rows
    return report


def says_who_is_absent(report):
    return all(
        any(name in note and "make bench-peers" in note for note in report.notes)
        for name in ("trl", "liger_kernel")
    )


def test_loss(tmp_path, no_peers):
    report = run(loss, tmp_path, "--all")
    cases = {(row["divergence"], row["masked"]) for row in report.rows}
    assert len(cases) == 6 and all(row["seconds"] > 0 for row in report.rows)
    assert says_who_is_absent(report)


def test_memory_is_counted_exactly(tmp_path, no_peers):
    report = run(memory, tmp_path)
    tokens, vocab, t, s = (memory.TINY[k] for k in ("tokens", "vocab", "teacher", "student"))
    for row in report.rows:  # every way: each head once, the student's gradient twice
        assert row["TFLOP"] == 2 * tokens * vocab * (t + 3 * s) / 1e12
        inputs = 2 * (tokens * (s + t) + vocab * (s + t)) + 8 * tokens
        assert row["peak GiB"] * 2**30 > inputs
    assert says_who_is_absent(report)


def test_accuracy(tmp_path, no_peers):
    report = run(accuracy, tmp_path)
    mine = [row for row in report.rows if row["way"] == "ours"]
    assert {row["divergence"] for row in mine} == set(peers.BETA)
    for row in mine:
        assert row["loss"] < 1e-6 and row["hidden"] < 3e-3 and row["head"] < 3e-3
    theirs = [row for row in report.rows if row["way"] != "ours"]
    assert theirs and all(row["head"] > 1e-2 for row in theirs)
    twins = [note for note in report.notes if "identical models, logits" in note]
    assert len(twins) == 3 and all(note.endswith("ours, nats: 0") for note in twins)


def test_step(tmp_path, no_peers):
    report = run(step, tmp_path)
    assert [row["way"] for row in report.rows] == ["ours"]
    assert any("trl is not installed" in note for note in report.notes)


def test_overhead(tmp_path):
    report = run(overhead, tmp_path)
    assert [row["way"] for row in report.rows] == ["bare loop", "Distiller"]


def test_gpu(tmp_path, no_peers):
    report = run(gpu, tmp_path)
    assert {row["part"] for row in report.rows} == {"loss", "step", "fill", "cache"}
    assert not [row for row in report.rows if "result" in row]  # nothing ran out of memory
    assert says_who_is_absent(report)
    ways = {row["way"] for row in report.rows if row["part"] == "cache"}
    assert ways == {"ours, live", "ours, hidden states", "ours, top-64"}


def test_gpu_without_one_asks_for_the_small_preset(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--preset tiny"):
        gpu.main([])


def test_what_a_cache_gives_is_what_the_live_teacher_says():
    size = gpu.SIZES["tiny"]
    on = gpu.models(size)
    batch = step.rows(size.vocab, [size.length, size.length - 5])
    live = gpu.our_step(on, batch)
    for kind in ("hidden states", f"top-{gpu.TOP_K}"):  # k is all of the tiny vocabulary
        said = gpu.remembered(on, batch, kind)
        with torch.inference_mode(False):
            found = gpu.our_step(gpu.replace(on, teacher=said), batch)
        torch.testing.assert_close(found, live, rtol=2e-3, atol=1e-5)


# ------------------------------------------------------------------ that the same work is compared
def test_a_way_that_computes_something_else_stops_the_benchmark():
    size = loss.SIZES["tiny"]
    pair = loss.fresh(size, loss.heads(size), 0.5)
    found = {"ours": lambda p: peers.ours(p, "JSD"), "wrong": lambda p: 1.01 * peers.ours(p, "JSD")}
    with pytest.raises(SystemExit, match="wrong computes"):
        loss.same_work(found, pair, "JSD")


@pytest.mark.parametrize("name", peers.BETA)
@pytest.mark.parametrize("masked", [0.0, 0.6])
def test_every_way_that_is_here_computes_the_same(name, masked):
    torch.manual_seed(0)
    size = loss.SIZES["tiny"]
    pair = loss.fresh(size, loss.heads(size), masked)
    assert (pair.labels == IGNORE).any() == (masked > 0)
    found, _ = peers.ways(name)
    found.pop("Liger compiled", None)  # needs a compiler
    loss.same_work(found, pair, name)


def test_all_rows_of_a_step_count_in_both_conventions():
    batch = step.rows(50, [7, 4])
    assert batch.targets.ne(IGNORE).sum(1).tolist() == [6, 3]
    assert torch.equal(batch.targets[0, :-1], batch.input_ids[0, 1:])


def test_packing_times_the_same_work(tmp_path):
    report = run(packing, tmp_path)
    assert {row["way"] for row in report.rows} == set(packing.WAYS)


@pytest.mark.slow
def test_draws_of_vllm(tmp_path):
    servers.vllm_python()
    report = run(vllm_draws, tmp_path)
    assert {row["answers"] for row in report.rows} == {5} and len(report.rows) == 4
    assert all(row["cpu"] > 0 for row in report.rows)
