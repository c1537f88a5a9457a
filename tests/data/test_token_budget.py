"""Batches of so many tokens: every row once, within the budget, equally many steps an epoch."""

import json

import lightning
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_lightning.data import budget
from kd_lightning.data.budget import TokenBudget, best_fit, dealt, greedy
from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.sampler import FILLER, Shuffled
from kd_lightning.errors import KDError
from tests.data import kit
from tests.data.test_resume import Recorder

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60).map(np.array)
SIZES = {"lengths": LENGTHS, "tokens": st.integers(1, 40), "seed": st.integers(0, 5)}


def sampler(lengths, tokens, *, rank=0, world=1, seed=0, epoch=0, seen=0, order=None):
    made = TokenBudget(order or Shuffled(len(lengths)), lengths, tokens, rank, world, seed)
    made.epoch, made.seen = epoch, seen
    return made


def steps(lengths, tokens, world=1, **where):
    """For each step, the lists of all ranks."""
    made = [sampler(lengths, tokens, rank=r, world=world, **where) for r in range(world)]
    return list(zip(*made, strict=True))


def rows(made):
    """The global batches, in order."""
    return [sorted(i for rank in ranks for i in rank if i != FILLER) for ranks in made]


@given(**SIZES, world=st.integers(1, 4), epoch=st.integers(0, 30))
def test_every_row_once_within_the_budget(lengths, tokens, seed, world, epoch):
    where = {"seed": seed, "epoch": epoch}
    made = steps(lengths, tokens, world, **where)
    assert sorted(i for step in rows(made) for i in step) == list(range(len(lengths)))
    for step in rows(made):
        assert lengths[step].sum() <= tokens * world or len(step) == 1
    assert all(len(rank) > 0 for ranks in made for rank in ranks)
    assert len(made) == len(sampler(lengths, tokens, world=world, seed=seed))


@given(**SIZES)
def test_every_epoch_has_equally_many_steps(lengths, tokens, seed):
    made = sampler(lengths, tokens, seed=seed)
    for made.epoch in range(20):
        assert len(list(made)) == len(made)
    assert len(made) >= -(-int(lengths.sum()) // max(tokens, 1)) or lengths.max() > tokens


@given(**SIZES, world=st.integers(1, 4), epoch=st.integers(0, 12))
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(
    lengths, tokens, seed, world, epoch
):
    one = steps(lengths, tokens * world, seed=seed, epoch=epoch)
    many = steps(lengths, tokens, world, seed=seed, epoch=epoch)
    assert rows(one) == rows(many)


@given(**SIZES, epoch=st.integers(0, 12), after=st.integers(0, 60))
def test_going_on_reads_what_is_left(lengths, tokens, seed, epoch, after):
    made = steps(lengths, tokens, seed=seed, epoch=epoch)
    after = min(after, len(made) - 1)
    seen = sum(len(step) for step in rows(made)[:after])
    assert steps(lengths, tokens, seed=seed, epoch=epoch, seen=seen) == made[after:]


def test_a_position_inside_a_step_is_refused():
    lengths = np.full(12, 10)
    sampler(lengths, 40, seen=8).check()
    with pytest.raises(KDError, match=r"row 6 .*a step of 40 tokens.*batch_tokens"):
        sampler(lengths, 40, seen=6).check()


def test_by_hand():
    lengths = np.array([5, 4, 3, 9, 30, 1, 1])
    order = np.arange(7)
    cut = [batch.tolist() for batch in greedy(order, lengths, 10)]
    assert cut == [[0, 1], [2], [3], [4], [5, 6]]  # the long row stands alone
    fit = sorted(sorted(batch.tolist()) for batch in best_fit(order, lengths, 10))
    assert fit == [[0, 1, 6], [2], [3, 5], [4]]
    shares = dealt(np.array([0, 1, 2, 3]), lengths, 2)
    assert sorted(sum(int(lengths[i]) for i in share) for share in shares) == [9, 12]
    assert dealt(np.array([2]), lengths, 3) == [[2], [FILLER], [FILLER]]


@given(lengths=LENGTHS, world=st.integers(1, 5))
def test_ranks_get_alike_shares(lengths, world):
    shares = dealt(np.arange(len(lengths)), lengths, world)
    taken = [sum(int(lengths[i]) for i in share if i != FILLER) for share in shares]
    assert max(taken) - min(taken) <= lengths.max()


def test_an_epoch_that_needs_more_steps_is_packed_tighter(monkeypatch):
    """Two rows of 6 and two of 4 in steps of 10: three batches in a bad order, two in a good."""
    monkeypatch.setattr(budget, "TRIED", 1)
    lengths = np.array([6, 4, 6, 4])
    orders = {0: [0, 1, 2, 3], 1: [0, 2, 1, 3], 2: [1, 3, 0, 2]}
    made = sampler(lengths, 10, order=lambda seed, epoch: np.array(orders[epoch]))
    assert len(made) == 2
    for made.epoch in orders:
        found = list(made)
        assert len(found) == 2 and all(lengths[batch].sum() == 10 for batch in found)


def test_a_mixture_that_outgrows_its_steps_says_so(caplog):
    light, heavy = np.arange(4), np.arange(4, 8)
    lengths = np.array([5] * 4 + [9] * 4)

    def order(seed, epoch):
        return heavy if epoch == 9 else light

    made = sampler(lengths, 10, order=order, epoch=9)
    with pytest.warns(UserWarning, match=r"epoch 9 .* 2 steps of 10 .* heaviest step has 18"):
        found = list(made)
    assert sorted(i for batch in found for i in batch) == [4, 5, 6, 7]


# ------------------------------------------------------------------ in the data modules
def texts(path, count=23, skill="n"):
    """Rows of very different lengths."""
    made = [{"prompt": f"{skill}{i} " + "ab " * (i * 7 % 11)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def module(tmp_path, tokens=90, **more):
    path = texts(tmp_path / "rows.jsonl")
    held = texts(tmp_path / "held.jsonl", 3)
    data = kit.Echo(path, validation=held, batch_tokens=tokens, seed=3, **more)
    data.tokenizer = kit.byte_tokenizer()
    return data


def test_batches_of_a_data_module(tmp_path):
    loader = module(tmp_path).train_dataloader()
    assert len(loader) > 4
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(sum(b.lengths) <= 90 or len(b) == 1 for b in batches)
        assert len({name for b in batches for name in b.ids}) == 23


def test_a_mixture(tmp_path):
    parts = {n: Part(kit.Echo(texts(tmp_path / f"{n}.jsonl", 9, n)), 1.0) for n in ("a", "b")}
    data = Mixture(parts, batch_tokens=80, epoch_rows=12)
    data.tokenizer = kit.byte_tokenizer()
    loader = data.train_dataloader()
    for _ in range(4):
        batches = list(loader)
        assert len(batches) == len(loader) and sum(len(b) for b in batches) == 12


def fit(tmp_path, workers, max_epochs=3, every=None, ckpt=None):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=every, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[saving] if every else [],
        enable_checkpointing=bool(every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    recorder = Recorder()
    recorder.tokenizer = kit.byte_tokenizer()
    trainer.fit(recorder, module(tmp_path, num_workers=workers), ckpt_path=ckpt)
    return recorder.read, trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_and_the_end_is_known(tmp_path, workers):
    whole, trainer = fit(tmp_path, workers, every=1)
    assert trainer.estimated_stepping_batches == len(whole) == trainer.global_step
    steps = len(whole) // 3
    for stop in (2, steps, steps + 2):
        checkpoint = next((tmp_path / "ckpt").glob(f"*step={stop}.ckpt"))
        rest, _ = fit(tmp_path, workers, ckpt=checkpoint)
        assert whole[:stop] + rest == whole


def test_a_stream_is_refused(tmp_path):
    with pytest.raises(KDError, match=r"batch_tokens needs all rows' lengths"):
        kit.Echo(texts(tmp_path / "a.jsonl"), batch_tokens=9, streaming=True, limit_train=3)
    with pytest.raises(KDError, match="at least 1"):
        kit.Echo(texts(tmp_path / "a.jsonl"), batch_tokens=0)
