"""On-policy a student learns to recover from its own mistakes; clean data does not teach it."""

import pytest

from benchmarks.drift import Size, measure
from benchmarks.tracks import Counting, Tracks
from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoder
from kd_lightning.types import Example
from tests.tiny import tokenizer

ON_POLICY = ("on-policy forward KL", "on-policy reverse KL")
OFF_POLICY = ("off-policy SFT", "off-policy forward KL")
SHUFFLED = "on-policy forward KL, shuffled teacher"


@pytest.mark.parametrize(
    ("track", "behind"),
    [
        ("789", "890"),
        ("780", "89_"),  # a wrong digit
        ("78_01", "89012"),  # behind the reset: from 0
        ("78_1", "890_"),  # not from 1
        ("7__0", "8001"),  # the reset again: still from 0
        ("7a8", "8_9"),  # no digit
    ],
)
def test_what_the_teacher_says(track, behind):
    known = tokenizer()
    teacher = Counting(known)
    row = Encoder(known).document(Example.document(id="0", text=track + "0"), None)
    ids = Collate(0, {})([row]).input_ids
    assert ids.shape[1] == len(track) + 1  # the beginning, the track
    assert "".join(known.convert_ids_to_tokens(teacher.said(ids)[0, 1:].tolist())) == behind


def test_the_data_shows_no_reset():
    known = tokenizer()
    teacher = Counting(known)
    for batch in Tracks(2, 0, known).batches():
        assert not (batch.input_ids == teacher.reset).any()
        assert not (teacher.said(batch.input_ids) == teacher.reset).any()


@pytest.fixture(scope="module")
def seeds():
    return [measure(seed, (*ON_POLICY, *OFF_POLICY, SHUFFLED), Size()) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_policy_recovers_and_clean_data_and_a_shuffled_teacher_do_not(seeds):
    for found in seeds:
        assert found["start"]["right"] > 0.9 and found["start"]["reset"] < 0.1, found
        for arm in ON_POLICY:
            assert found[arm]["reset"] >= 0.95 and found[arm]["right"] >= 0.95, found
        for arm in OFF_POLICY:
            assert found[arm]["reset"] <= 0.1 and found[arm]["right"] >= 0.95, found
        lost = found[SHUFFLED]
        assert lost["reset"] * lost["right"] < 0.5, found
