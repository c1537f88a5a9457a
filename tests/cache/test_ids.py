"""Ids survive packing, whatever the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from kd_lightning.cache import ids

VOCABULARIES = [300, 2**16, 2**16 + 1, 151_936, 2**18, 2**18 + 1, 2**20 + 5, 2**24]


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("width", [1, 3, 64])
def test_what_is_packed_comes_back(vocab, width):
    drawn = np.random.default_rng(vocab).integers(0, vocab, (50, width))
    drawn[0, 0], drawn[1, 0] = 0, vocab - 1
    packed = ids.pack(drawn, vocab)
    for plane in ids.planes(vocab, width):
        assert packed[plane.name].shape == (50, *plane.width)
        assert packed[plane.name].dtype == np.dtype(plane.dtype)
    assert np.array_equal(ids.unpack(packed, vocab), drawn)


@pytest.mark.parametrize(("vocab", "size"), [(65_536, 128), (151_936, 144), (262_208, 160)])
def test_64_ids_take_this_many_bytes(vocab, size):
    assert sum(plane.bytes for plane in ids.planes(vocab, 64)) == size


def test_a_row_of_slots_is_cut_at_bytes():
    drawn = np.random.default_rng(0).integers(0, 151_936, 4 * 7)
    packed = ids.pack(drawn, 151_936)
    share = ids.together(151_936)
    part = {"ids_low": packed["ids_low"][8:20], "ids_high": packed["ids_high"][8 // share : 5]}
    assert np.array_equal(ids.unpack(part, 151_936), drawn[8:20])
