"""Records chosen by a number, at random, by group."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.curate.select import Quantile, Threshold, Top, amount
from kd_lightning.curate.split import Split
from kd_lightning.curate.strata import Curriculum, Sample, Stratified
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from tests.curate.kit import ids, ran, records, work


def numbered(*values):
    return records(*({"score": v} for v in values))


def test_a_threshold_names_the_side():
    rows = numbered(1, 2, 3, "2.5", None, float("nan"))
    kept, fallen = ran(Threshold(least=2, most=2.5), rows)
    assert kept == ["r1", "r3"]
    assert fallen == {"score below 2": ["r0"], "score above 2.5": ["r2"], "no score": ["r4", "r5"]}


def test_the_best_stay_in_their_order():
    rows = numbered(1, 5, 3, 5, 4)
    assert ran(Top(k=2), rows) == (["r1", "r3"], {"others have a larger score": ["r0", "r2", "r4"]})
    assert ran(Top(k=1), rows)[0] == ["r1"], "of equals the first"
    assert ran(Top(share=0.4, lowest=True), rows)[0] == ["r0", "r2"]
    assert ran(Top(k=9), rows)[0] == ids(rows)


def test_the_best_of_each_prompt():
    rows = records(
        {"prompt": "p", "score": 1},
        {"prompt": "q", "score": 0},
        {"prompt": "p", "score": 2},
        {"prompt": "q", "score": -1},
    )
    assert ran(Top(k=1, within="prompt"), rows)[0] == ["r1", "r2"]


def test_the_best_child_of_each_root():
    parents = records({"score": 0}, {"score": 0})
    children = [p.child("s", str(i), score=i) for p in parents for i in range(3)]
    assert ran(Top(k=1, within="root"), children)[0] == ["r0/2", "r1/2"]


def test_records_without_the_group_fall():
    rows = records({"score": 1}, {"score": 1, "topic": "t"})
    for step in (Stratified(k=1), Top(k=1, within="topic"), Split(by="topic")):
        kept, fallen = ran(step, rows)
        assert (kept, fallen) == (["r1"], {"no topic": ["r0"]})


def test_a_number_inside_a_list():
    rows = records({"scores": [1, 5]}, {"scores": [2, 0]}, {"scores": [3]})
    kept, fallen = ran(Top(score="scores.1", k=1), rows)
    assert kept == ["r0"] and fallen["no scores.1"] == ["r2"]


def test_quantiles():
    rows = numbered(*range(10))
    assert ran(Quantile(low=0.2, high=0.5), rows)[0] == ["r2", "r3", "r4"]
    assert ran(Quantile(), rows)[0] == ids(rows)
    parts = [ran(Quantile(low=a, high=b), rows)[0] for a, b in ((0, 0.3), (0.3, 0.7), (0.7, 1))]
    assert [name for part in parts for name in part] == ids(rows)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 1))
def test_amounts(of, k, share):
    assert amount(k, None, of) == min(k, of)
    assert abs(amount(None, share, of) - share * of) <= 0.5 + 1e-9
    assert 0 <= amount(None, share, of) <= of


def test_strata_get_the_same():
    rows = records(*({"topic": t, "score": i} for i, t in enumerate("aaaabbc")))
    kept = ran(Stratified(k=2), rows)[0]
    assert len(kept) == 5 and {"r4", "r5", "r6"} <= set(kept)
    assert ran(Stratified(k=1, score="score"), rows)[0] == ["r3", "r5", "r6"]
    assert len(ran(Stratified(share=0.5), rows)[0]) == 2 + 1 + 1
    drawn = {tuple(ran(Stratified(k=2), rows, work(seed))[0]) for seed in range(20)}
    assert len(drawn) > 3, "the seed draws"


def test_a_sample_is_drawn_by_the_seed():
    rows = numbered(*range(30))
    first = ran(Sample(k=10), rows)[0]
    assert len(first) == 10 and first == ran(Sample(k=10), rows)[0]
    assert first == sorted(first, key=lambda i: int(i[1:])), "in their order"
    assert first != ran(Sample(k=10), rows, work(1))[0]
    assert first != ids(rows)[:10]
    often = sum("r7" in ran(Sample(k=10), rows, work(seed))[0] for seed in range(150))
    assert 25 < often < 75  # a third of 150, four standard deviations


def test_a_curriculum_is_stable():
    rows = numbered(2, 1, 2, 0)
    assert ran(Curriculum(), rows)[0] == ["r3", "r1", "r0", "r2"]
    assert ran(Curriculum(descending=True), rows)[0] == ["r0", "r2", "r1", "r3"]


def test_settings_are_checked():
    for bad in (lambda: Top(), lambda: Sample(k=1, share=0.5)):
        with pytest.raises(KDError, match="either k "):
            bad()
    with pytest.raises(KDError, match="needs a bound"):
        Threshold()
    with pytest.raises(KDError, match="between 0 and 1"):
        Top(share=2)
    with pytest.raises(KDError, match="high must lie"):
        Quantile(low=0.5, high=0.2)


def test_truth_counts_as_a_number():
    rows = [Record("y", {"score": True}), Record("n", {"score": False})]
    assert ran(Threshold(least=1), rows)[0] == ["y"]
