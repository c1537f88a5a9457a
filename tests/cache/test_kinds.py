"""What is stored of a token is what the teacher says of it, to the rounding of the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_lightning.cache.kinds import Asked
from kd_lightning.cache.sampled import Sampled
from kd_lightning.cache.topk import TopK
from kd_lightning.errors import KDError
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.types import IGNORE, Signal
from tests.cache.kit import CPU, Toy, batch, counted, rows, written

LOGITS = frozenset({Signal.LOGITS})
VOCABULARIES = [88, 70_000]


def read(folder, rows_of):
    teacher = CachedTeacher(str(folder))
    teacher.materialize(CPU)
    return teacher.forward(rows_of, LOGITS)


@pytest.fixture(params=VOCABULARIES)
def pair(request, tmp_path):
    """Data and a teacher, below and above the ids that 16 bits hold; its head is padded."""
    return rows(tmp_path / "data"), Toy(request.param, request.param + 5)


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("float32", 2**-22)])
def test_top_k_is_exact_but_for_the_rounding_of_its_logits(pair, tmp_path, dtype, step):
    data, toy = pair
    written(tmp_path / "cache", data, toy, k=8, dtype=dtype, temperatures=[3.0])
    taken = batch(data)
    found = read(tmp_path / "cache", taken).sparse
    z = counted(toy.forward(taken, LOGITS), taken)
    top = z.topk(8)
    best = top.values[:, :1]
    assert torch.equal(found.ids, top.indices) and found.support == "tail"
    assert set(found.lse) == {1.0, 3.0} and found.vocab == toy.head.vocab
    off = (found.logits - (top.values - best)).abs()
    assert (off <= step * (best - top.values) + 1e-5).all()
    for temperature, lse in found.lse.items():
        outside = z.scatter(1, top.indices, -torch.inf)
        rest = ((outside - best) / temperature).exp().sum(-1)
        shares = (found.logits.double() / temperature - lse[:, None]).exp()
        tail = rest / ((found.logits.double() / temperature).exp().sum(-1) + rest)
        torch.testing.assert_close(1 - shares.sum(-1), tail, atol=3e-7, rtol=1e-5)
    log_p = z.log_softmax(-1)
    label = log_p.gather(1, taken.targets[taken.targets != IGNORE][:, None])[:, 0]
    torch.testing.assert_close(found.label.double(), label, atol=1e-5, rtol=1e-5)
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=1e-5)


def test_all_ids_leave_nothing_outside(tmp_path):
    data = rows(tmp_path / "data")
    manifest = written(tmp_path / "cache", data, k=1000)
    assert manifest.settings["k"] == 1000 and manifest.vocab == 88
    found = read(tmp_path / "cache", batch(data)).sparse
    assert found.ids.shape[1] == 88 and manifest.sum("tail") < 1e-3
    for temperature, lse in found.lse.items():
        shares = (found.logits / temperature - lse[:, None]).exp().sum(-1)
        torch.testing.assert_close(shares, torch.ones_like(shares), atol=2e-6, rtol=0)


def test_impossible_ids_become_empty_slots():
    hidden = torch.zeros(1, 3)
    logits = torch.tensor([[0.0, -1.0, -torch.inf]])

    class Given:
        vocab = 3

        def __call__(self, states):
            return logits

    asked = Asked(Given(), hidden, torch.tensor([0]), (b"0" * 16,), (1,))
    planes, sums = TopK(3, 3).encode(asked)
    assert planes["logits"].tolist() == [[0.0, -1.0, -np.inf]]
    p = logits.double().softmax(-1)
    assert planes["entropy"][0] == pytest.approx(float(-torch.special.xlogy(p, p).sum()))
    assert np.isfinite(planes["lse"]).all() and sums["tail"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("proposal", [1.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_drawn_shares_are_right_on_average(tmp_path, proposal, temperature):
    torch.manual_seed(0)
    z = 2 * torch.randn(1, 12)
    kind = Sampled(12, 50, proposal, [temperature])
    drawn = np.random.default_rng(0).random((4000, 50))
    count, ids, share = kind._draw(z.repeat(4000, 1), torch.from_numpy(drawn))
    shares = share / 50 if proposal == 1.0 else np.exp(share)
    token = np.repeat(np.arange(4000), count)
    table = np.zeros((4000, 12))
    table[token, ids] = shares
    if proposal == 1.0:
        assert np.allclose(table.sum(1), 1)
    p = (z / temperature).double().softmax(-1)[0].numpy()
    error = table.std(0) / 4000**0.5
    assert (np.abs(table.mean(0) - p) < 5 * error + 1e-9).all() and (p > 0).all()


@pytest.mark.parametrize("proposal", [1.0, 0.5])
def test_sampled_comes_back_and_does_not_depend_on_the_batches(pair, tmp_path, proposal):
    data, toy = pair
    how = {"kind": "sampled", "draws": 40, "proposal": proposal, "seed": 5, "temperatures": [2.0]}
    written(tmp_path / "a", data, toy, **how)
    written(tmp_path / "b", data, toy, batch_tokens=10_000, shard_megabytes=1, **how)
    taken = batch(data)
    one, two = (read(tmp_path / name, taken).sparse for name in "ab")
    assert torch.equal(one.ids, two.ids) and one.support == "sampled"
    torch.testing.assert_close(one.logits, two.logits)
    filled = one.logits > -torch.inf
    for ids, there in zip(one.ids, filled, strict=True):
        assert len(set(ids[there].tolist())) == int(there.sum()) > 0
    z = counted(toy.forward(taken, LOGITS), taken)
    label = z.log_softmax(-1).gather(1, taken.targets[taken.targets != IGNORE][:, None])[:, 0]
    torch.testing.assert_close(one.label.double(), label, atol=1e-5, rtol=1e-5)
    log_p = (z / 2).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(one.entropy.double(), entropy, atol=1e-5, rtol=1e-5)
    assert set(one.lse) == {2.0}
    if proposal == 1.0:
        times = one.logits.exp() * 40
        torch.testing.assert_close(times, times.round(), atol=1e-4, rtol=0)
        assert (times.sum(-1).round() == 40).all()
    else:
        log_q = (0.5 * log_p).log_softmax(-1)
        times = (one.logits - (log_p - log_q).gather(1, one.ids)).exp() * 40
        times = times[filled]
        torch.testing.assert_close(times, times.round(), atol=1e-3, rtol=0)
    written(tmp_path / "c", data, toy, **{**how, "seed": 6})
    assert not torch.equal(read(tmp_path / "c", taken).sparse.ids[:, :1], one.ids[:, :1])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float32"])
def test_hidden_states_come_back_to_their_rounding(pair, tmp_path, dtype):
    data, toy = pair
    written(tmp_path / "cache", data, toy, kind="hidden", dtype=dtype)
    taken = batch(data)
    live, found = toy.forward(taken, LOGITS), read(tmp_path / "cache", taken)
    there = taken.targets != IGNORE
    states, kept = live.hidden[there], found.hidden[there]
    assert found.sparse is None and (found.hidden[~there] == 0).all()
    if dtype == "float32":
        assert torch.equal(kept, states)
        assert torch.equal(counted(found, taken), counted(live, taken))
    elif dtype == "bfloat16":
        assert torch.equal(kept, states.bfloat16().float())
    else:
        assert ((kept - states).abs() <= states.abs().amax(-1, keepdim=True) / 253).all()
    assert found.head.vocab == toy.head.vocab and found.head.scale == 3.0


def test_few_ids_are_no_logits(tmp_path):
    data = rows(tmp_path / "data")
    written(tmp_path / "cache", data)
    with pytest.raises(KDError, match="few ids a token"):
        _ = read(tmp_path / "cache", batch(data)).logits
