"""The documents that have most to do with a question."""

import math

import pytest

from kd_lightning.curate.relevance import BM25, Cosine
from kd_lightning.curate.retrieve import Retrieve
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work

DOCS = ["the fox sleeps", "the hen and the fox and the dog", "a hen"]


def test_bm25_by_hand():
    [found] = BM25(k1=1.2, b=0.75).of([("The fox, the FOX", DOCS)], work())
    mean = (3 + 8 + 2) / 3
    common = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # `the` and `fox` stand in two of the three

    def part(times, length):
        return common * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))

    want = [2 * part(1, 3) + 2 * part(1, 3), 2 * part(3, 8) + 2 * part(1, 8), 0.0]
    assert found == pytest.approx(want)
    [alone] = BM25().of([("fox", ["fox", "fox fox"])], work())
    assert 0 < alone[0] < alone[1]  # a word of every document still counts for something
    assert BM25().of([("?", ["", "!"])], work()) == [[0.0, 0.0]]
    assert BM25().of([], work()) == []


def test_the_same_document_counts_once():
    [[first, _], _] = BM25().of([("fox", ["fox", "hen"]), ("hen", ["fox", "hen"])], work())
    [[other, _]] = BM25().of([("fox", ["fox", "hen"])], work())
    assert first == pytest.approx(other)


def test_the_best_stay_in_order():
    rows = records(
        {"prompt": "hen and dog", "docs": DOCS},
        {"prompt": "a fox", "docs": [{"text": "hen", "id": 1}, {"text": "fox", "id": 2}]},
        {"prompt": "cow", "docs": ["one", "two"]},
        {"prompt": "fox"},
        {"docs": DOCS},
    )
    for by in (None, Cosine()):
        at = work()
        made = Retrieve(k=2, by=by, scores="relevance").run(rows, at)
        assert made[0]["docs"] == [DOCS[1], DOCS[2]]
        assert [doc["id"] for doc in made[1]["docs"]] == [2, 1]
        assert made[2]["docs"] == ["one", "two"]
        assert all(r["relevance"] == sorted(r["relevance"], reverse=True) for r in made)
        assert made[2]["relevance"] == [0, 0]
    _, fallen = ran(Retrieve(), rows)
    assert fallen == {"no docs": ["r3"], "no prompt": ["r4"]}
    [kept, *_] = Retrieve(into="evidence").run(rows, work())
    assert kept["evidence"] == [DOCS[1]] and kept["docs"] == DOCS
    with pytest.raises(KDError, match="k must be at least 1"):
        Retrieve(k=0)
