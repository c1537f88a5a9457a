"""The order of rows: a function of seed, epoch and position; shared out evenly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kd_lightning.data.sampler import FILLER, GlobalSampler, InOrder, Shuffled


def steps(total, batch, world, *, epoch=0, seen=0, seed=0, order=None):
    """For each step, the lists of all ranks."""
    samplers = [
        GlobalSampler(order or Shuffled(total), total, batch, rank, world, seed)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.epoch, sampler.seen = epoch, seen
    return list(zip(*samplers, strict=True)), len(samplers[0])


def rows(made):
    """The global batches, in order."""
    return [sorted(i for rank in ranks for i in rank if i != FILLER) for ranks in made]


SIZES = {"total": st.integers(1, 50), "batch": st.integers(1, 7), "world": st.integers(1, 5)}


@given(**SIZES)
def test_every_row_once_and_every_rank_alike(total, batch, world):
    made, length = steps(total, batch, world)
    assert len(made) == length
    assert sorted(i for step in rows(made) for i in step) == list(range(total))
    for ranks in made:
        assert len({len(rank) for rank in ranks}) == 1
        assert 1 <= len(ranks[0]) <= batch
        assert sum(i == FILLER for rank in ranks for i in rank) < world


@given(**SIZES)
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(total, batch, world):
    one, _ = steps(total, batch * world, 1)
    many, _ = steps(total, batch, world)
    assert rows(one) == rows(many)


@given(**SIZES, after=st.integers(0, 10))
def test_going_on_elsewhere_reads_what_is_left(total, batch, world, after):
    made, _ = steps(total, batch, world)
    seen = min(after, len(made) - 1) * batch * world
    rest, _ = steps(total, 3, 2, seen=seen)
    before = [i for step in rows(made)[: seen // (batch * world)] for i in step]
    assert sorted([*before, *(i for step in rows(rest) for i in step)]) == list(range(total))


def test_order_by_seed_and_epoch():
    order = Shuffled(20)
    assert order(0, 1).tolist() == order(0, 1).tolist()
    assert order(0, 1).tolist() != order(0, 0).tolist()
    assert order(0, 1).tolist() != order(1, 1).tolist()
    assert np.array_equal(InOrder(5)(3, 3), np.arange(5))
