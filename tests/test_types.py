"""Batches in pieces: what belongs together stays together."""

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.types import IGNORE, Batch

LENGTHS = [5, 3, 4, 2, 6, 1, 2]
GROUPS = [8, 8, 8, 2, 2, 5, 9]


def rows(group=None):
    count, width = len(LENGTHS), max(LENGTHS)
    ids = torch.arange(count * width).view(count, width)
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long()
    zeros = torch.zeros(count, dtype=torch.long)
    return Batch(
        ids, mask, ids.masked_fill(mask == 0, IGNORE), mask.float(), zeros, zeros,
        tuple("abcdefg"),
        group=None if group is None else torch.tensor(group),
        reward=torch.arange(count).float(),
        behaviour=-ids.float(),
        reference=-torch.arange(count).float(),
        advantages=ids.double(),
    )  # fmt: skip


def names(pieces):
    return ["".join(piece.ids) for piece in pieces]


def test_without_groups_rows_are_cut_anywhere():
    assert names(rows().split(rows=2)) == ["ab", "cd", "ef", "g"]
    assert names(rows().split(tokens=10)) == ["ab", "cd", "e", "fg"]
    assert names(rows().split(tokens=9, padded=False)) == ["ab", "cd", "efg"]
    assert names(rows().split()) == ["abcdefg"]


def test_a_group_is_never_cut():
    batch = rows(GROUPS)
    assert names(batch.split(rows=1)) == ["abc", "de", "f", "g"]
    assert names(batch.split(rows=2)) == ["abc", "de", "fg"]
    assert names(batch.split(rows=5)) == ["abcde", "fg"]
    assert names(batch.split(rows=6)) == ["abcdef", "g"]
    assert names(batch.split(tokens=1)) == ["abc", "de", "f", "g"]
    assert names(batch.split(tokens=18)) == ["abc", "def", "g"]
    assert names(batch.split(tokens=9, padded=False)) == ["abc", "def", "g"]
    assert names(batch.split(tokens=11, padded=False)) == ["abc", "defg"]


def test_groups_in_pieces_are_refused():
    with pytest.raises(KDError, match="side by side"):
        rows([1, 1, 2, 1, 3, 3, 3]).split(rows=2)


def test_what_is_known_of_answers_goes_with_their_rows():
    batch = rows(GROUPS)
    piece = batch.split(rows=2)[1]
    assert piece.group.tolist() == [2, 2]
    assert piece.reward.tolist() == [3, 4]
    assert piece.reference.tolist() == [-3, -4]
    assert piece.behaviour.shape == piece.advantages.shape == (2, 6)
    assert torch.equal(piece.behaviour, batch.behaviour[3:5])
    assert batch.rows(5, 7).behaviour.shape == (2, 2)  # columns that hold only padding are gone
    again = batch.to("meta")
    assert again.reward.device.type == again.advantages.device.type == "meta"
    assert batch.replace(reward=None).reward is None
    assert batch.masked().group.tolist() == [8]


def test_batches_of_words_know_nothing_of_it():
    batch = rows()
    plain = Batch(batch.input_ids, batch.attention_mask, batch.targets, batch.weights,
                  batch.source, batch.skill)  # fmt: skip
    for made in (plain, plain.rows(0, 2), plain.replace(ids=("x",)), plain.to("meta"),
                 *plain.split(rows=3)):  # fmt: skip
        assert made.group is made.reward is made.behaviour is None
        assert made.reference is made.advantages is None
