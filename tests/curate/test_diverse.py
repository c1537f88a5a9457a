"""Records that are far from each other."""

import itertools
import math

import numpy as np
import pytest

from kd_lightning.curate.diverse import KCentre, Novelty, centres
from kd_lightning.curate.vectors import HiddenStates, TfIdf, Vectors
from kd_lightning.errors import KDError
from tests.curate.kit import Rule, ids, ran, records, texts, work


class Plane(Vectors):
    """Texts that are their own coordinates."""

    def of(self, texts, work):
        return np.array([[float(x) for x in text.split()] for text in texts], np.float32)


def reach(points, chosen):
    return max(min(math.dist(p, points[c]) for c in chosen) for p in points)


@pytest.mark.parametrize("seed", range(12))
def test_no_centres_are_twice_as_good(seed):
    points = np.random.default_rng(seed).normal(size=(9, 2)).astype(np.float32)
    for count in (1, 2, 3, 4):
        best = min(reach(points, c) for c in itertools.combinations(range(9), count))
        for first in range(9):
            found = centres(points, count, first)
            assert len(set(found)) == count
            assert reach(points, found) <= 2 * best + 1e-5


def test_twins_do_not_stop_it():
    points = np.zeros((4, 2), np.float32)
    assert sorted(centres(points, 4, 2)) == [0, 1, 2, 3]


def test_a_core_set_covers_every_cluster():
    rows = texts(
        *(f"{x} {y}" for x, y in [(0, 0), (0, 1), (1, 0), (9, 9), (9, 8), (50, 0), (51, 0)])
    )
    for seed in range(5):
        at = work(seed)
        kept, fallen = ran(KCentre(k=3, vectors=Plane()), rows, at)
        clusters = [{"r0", "r1", "r2"}, {"r3", "r4"}, {"r5", "r6"}]
        assert all(len(c & set(kept)) == 1 for c in clusters)
        assert len(fallen["near a chosen record"]) == 4
        assert 0 < at.tally.notes["largest distance to a centre"] <= 1.415
    assert ran(KCentre(share=0.0), rows)[0] == []
    assert ran(KCentre(k=3), [])[0] == []


def test_novelty_takes_the_best_that_is_new():
    rows = records(
        {"prompt": "1 0", "score": 1},
        {"prompt": "0 1", "score": 3},
        {"prompt": "0.1 0.995", "score": 2},
        {"prompt": "-1 0", "score": 0},
        {"prompt": "0 -1"},
    )
    kept, fallen = ran(Novelty(vectors=Plane()), rows)
    assert kept == ["r0", "r1", "r3"]
    assert fallen == {"no score": ["r4"], "near a record of a higher score": ["r2"]}
    assert ran(Novelty(k=2, vectors=Plane()), rows)[1]["enough records of a higher score"] == ["r3"]
    assert ran(Novelty(closest=0.999, vectors=Plane()), rows)[0] == ["r0", "r1", "r2", "r3"]


def test_words_by_how_often_and_how_rare():
    found = TfIdf(4096).of(["a a b", "a c"], work())
    rare = 1 + math.log(3 / 2)  # b: in one of two texts; a: in both, 1 + log(3/3) = 1
    a, b = (1 + math.log(2)), rare
    first = 1 / math.hypot(a, b) * 1 / math.hypot(1, rare)
    assert float(found[0] @ found[1]) == pytest.approx(a * 1 * first, abs=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1])
    assert not TfIdf().of(["..."], work()).any()


def test_hidden_states_need_a_model_here():
    step = KCentre(k=1, vectors=HiddenStates("teacher"))
    with pytest.raises(KDError, match="LocalTeacher"):
        step.run(texts("a", "b"), work(teacher=Rule()))


def test_the_model_of_the_vectors_is_asked_for_at_set_up():
    assert KCentre(k=1, vectors=HiddenStates("student")).needs() == {"student": frozenset()}
    assert KCentre(k=1).needs() == {}


def test_hidden_states_of_a_model(tiny_teacher):
    import torch

    from kd_lightning.teachers.local import LocalTeacher

    model = LocalTeacher(tiny_teacher, dtype="float32", attention="sdpa")
    model.materialize(torch.device("cpu"))
    told = ["abc", "abc", "a much longer text", ""]
    one = HiddenStates("teacher", batch_size=1).of(told, work(teacher=model))
    all_ = HiddenStates("teacher", batch_size=4).of(told, work(teacher=model))
    assert np.allclose(one, all_, atol=1e-4), "padding does not count"
    assert one[0] @ one[1] == pytest.approx(1, abs=1e-5)
    assert one[0] @ one[2] < 1 - 1e-3
    kept = Novelty(vectors=HiddenStates("teacher"), closest=0.9999).run(
        records(*({"prompt": t, "score": i} for i, t in enumerate(told[:3]))), work(teacher=model)
    )
    assert ids(kept) == ["r1", "r2"]
