"""Texts that repeat others, exactly and nearly."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.dedup import DedupExact, DedupMinHash, DedupRougeL
from kd_lightning.curate.diverse import DedupEmbedding
from kd_lightning.curate.minhash import bands, jaccard, shingles
from kd_lightning.curate.rouge import RougeIndex, common
from kd_lightning.curate.texts import words
from kd_lightning.errors import KDError
from kd_lightning.metrics.answers import rouge_l
from tests.curate.kit import ids, ran, texts, work

LITTLE = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dogs", "run", "far"]), max_size=9
)
STEPS = [DedupExact(), DedupRougeL(), DedupMinHash(ngram=1, threshold=0.6), DedupEmbedding()]


def corpus(folder, *told, field="prompt"):
    path = folder / "other.jsonl"
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in told))
    return Corpus(str(path), field)


def by_table(a, b):
    """The longest common subsequence as every textbook has it."""
    row = [0] * (len(b) + 1)
    for x in a:
        old = row[:]
        for j, y in enumerate(b):
            row[j + 1] = old[j] + 1 if x == y else max(old[j + 1], row[j])
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(LITTLE, LITTLE)
def test_the_subsequence_in_bits_is_that_of_the_table(a, b):
    assert common(a, b) == by_table(a, b)


def test_the_subsequence_of_long_texts():
    rng = random.Random(1)
    a, b = ([rng.choice("abcdef") for _ in range(n)] for n in (300, 450))
    assert common(a, b) == by_table(a, b)


@settings(max_examples=40, deadline=None)
@given(st.lists(LITTLE.map(" ".join), min_size=1, max_size=5), LITTLE.map(" ".join))
def test_the_index_finds_what_comparing_all_finds(known, text):
    index = RougeIndex(0.5, stem=True)
    for one in known:
        index.add(one)
    best = max(rouge_l(text, [one]) for one in known)
    assert index.find(text) == pytest.approx(best if best >= 0.5 else 0.0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(LITTLE.map(" ".join), max_size=8))
@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
def test_a_second_time_nothing_falls(step, told):
    once = step.run(texts(*told), work())
    assert ids(step.run(once, work())) == ids(once)


def test_the_first_stays_and_reasons_are_told():
    rows = texts("Name a fruit.", "name a FRUIT", "Name a fruit!", "Name a tree", " ")
    kept, fallen = ran(DedupExact(), rows)
    assert kept == ["r0", "r3"]
    assert fallen == {"repeats an earlier record": ["r1", "r2"], "no prompt": ["r4"]}
    assert ran(DedupExact(strict=True), rows)[0] == ["r0", "r1", "r2", "r3"]


def test_signs_alone_are_compared_too():
    assert ran(DedupExact(), texts("?!", "?!", "..."))[0] == ["r0", "r2"]


def test_rouge_l_at_the_threshold():
    # 7 of 10 words in order: F = 2 * 7 / (10 + 10) = 0.7, which is a repetition
    base = "a b c d e f g h i j"
    at, below = "a b c d e f g x y z", "a b c d e f w x y z"
    assert ran(DedupRougeL(), texts(base, at))[0] == ["r0"]
    assert ran(DedupRougeL(), texts(base, below))[0] == ["r0", "r1"]
    turned = "j i h g f e d c b a"  # the same bag, another order
    assert ran(DedupRougeL(), texts(base, turned))[0] == ["r0", "r1"]


def test_records_of_a_file_are_not_repeated(tmp_path):
    against = corpus(tmp_path, "What is two and two?", field="question")
    rows = texts("what is two and two", "What is three?", "what is three")
    for step in (DedupExact(against=against), DedupRougeL(threshold=0.9, against=against)):
        kept, fallen = ran(step, rows)
        assert kept == ["r1"]
        assert fallen == {
            "repeats a text of `against`": ["r0"],
            "repeats an earlier record": ["r2"],
        }


def test_settings_follow_the_content_of_the_file(tmp_path):
    before = DedupExact(against=corpus(tmp_path, "one")).digest()
    assert DedupExact(against=corpus(tmp_path, "one")).digest() == before
    assert DedupExact(against=corpus(tmp_path, "two")).digest() != before


def test_a_wrong_column_is_named(tmp_path):
    step = DedupExact(against=Corpus(str(corpus(tmp_path, "one").path), "text"))
    with pytest.raises(KDError, match=r"no text in 'text'.*columns: prompt"):
        step.run(texts("a"), work())


def test_bands_reach_the_recall():
    for threshold in (0.5, 0.7, 0.8, 0.9):
        many, rows = bands(128, threshold, 0.99)
        assert many * rows <= 128
        assert 1 - (1 - threshold**rows) ** many >= 0.99
        longer = rows + 1
        assert 1 - (1 - threshold**longer) ** (128 // longer) < 0.99


def test_minhash_finds_what_jaccard_says():
    rng = random.Random(3)
    bases = [[f"w{rng.randrange(5000)}" for _ in range(40)] for _ in range(120)]
    changed = []
    for base in bases:
        copy = list(base)
        for place in rng.sample(range(40), rng.randrange(0, 24)):
            copy[place] = "new"
        changed.append(copy)
    step = DedupMinHash(threshold=0.7, ngram=1)
    rows = texts(*(" ".join(t) for t in bases + changed))
    kept = set(ids(step.run(rows, work())))
    truly = [jaccard(shingles(a, 1), shingles(b, 1)) for a, b in zip(bases, changed, strict=True)]
    found = [f"r{120 + i}" not in kept for i in range(120)]
    near = [s >= 0.7 for s in truly]
    assert 20 < sum(near) < 110, "the test has both kinds"
    assert not any(f and not n for f, n in zip(found, near, strict=True)), "never a wrong one"
    missed = sum(n and not f for f, n in zip(found, near, strict=True))
    assert missed <= 2, "99 of 100 even at the threshold"


def test_jaccard_by_hand():
    a, b = (shingles(words(t), 2) for t in ("a b c d", "b c d e"))
    assert jaccard(a, b) == pytest.approx(2 / 4)  # bc, cd of ab, bc, cd, de
    assert jaccard(a, a) == 1.0
    assert jaccard(shingles([], 2), shingles([], 2)) == 0.0
    assert len(shingles(["one"], 5)) == 1
    assert np.all(np.diff(a.astype(object)) > 0)


def test_scripts_without_spaces_are_compared_by_characters():
    rows = texts("今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啊", "明天下雨")
    assert ran(DedupRougeL(threshold=0.8), rows)[0] == ["r0", "r2"]


def test_embedding_by_words():
    rows = texts("solar panels make power", "power: panels make solar", "paint the old door red")
    assert ran(DedupEmbedding(), rows)[0] == ["r0", "r2"]


def test_thresholds_are_checked():
    with pytest.raises(KDError, match="above 0 and at most 1"):
        DedupRougeL(threshold=0)
