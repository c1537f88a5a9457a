"""Several skills at chosen ratios."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lightning.data.mixture import Mixed, Mixture, Part
from kd_lightning.data.skills import PlainText
from kd_lightning.errors import KDError
from tests.data import kit


class Loud(kit.Echo):
    """Judges otherwise."""

    def grade(self, example, answer):
        return {"loud": float(answer.isupper())}


def make(tmp_path, **settings):
    one = kit.Echo(kit.numbers(tmp_path / "one.jsonl", 31), limit_train=30, validation_share=0.03)
    two = Loud(kit.numbers(tmp_path / "two.jsonl", 11), limit_train=10, system="loud")
    data = Mixture({"echo": Part(one, 1.0), "loud": Part(two, 3.0)}, **settings)
    data.tokenizer = kit.byte_tokenizer()
    return data


def test_names_grades_prompts_and_summaries(tmp_path):
    data = make(tmp_path)
    data.setup()
    assert data.skills == ("echo", "loud")
    echo, loud = data.examples("train")[0], data.examples("train")[-1]
    assert (echo.skill, loud.skill) == ("echo", "loud")
    assert data.grade(echo, echo.answer) == {"same": 1.0}
    assert data.grade(loud, "HEY") == {"loud": 1.0}
    decode = data.tokenizer.decode
    assert "loud" in decode(data.prompt_ids(loud))
    assert "loud" not in decode(data.prompt_ids(echo))
    summary = data.summary["train"]
    assert summary.rows == 40
    assert {name: part.rows for name, part in summary.parts.items()} == {"echo": 30, "loud": 10}
    rendered = list(data.rendered("validation"))
    assert [e.skill for e in rendered] == ["echo", "loud"]
    assert rendered == data.examples("validation")


def test_batches_have_the_ratios(tmp_path):
    data = make(tmp_path, batch_size=8)
    loader = data.train_dataloader()
    assert len(loader) == 5
    batches = list(loader)
    for batch in batches:
        assert batch.skill.tolist().count(1) == 6
    read = Counter(e.id for batch in batches for e in batch.examples)
    assert sum(read.values()) == 40
    loud = [n for name, n in read.items() if name.startswith("two")]
    assert loud == [3] * 10  # the small part three times
    following = {e.id for batch in loader for e in batch.examples if e.skill == "echo"}
    assert not following & set(read)  # the large part goes on


def test_epoch_rows(tmp_path):
    assert len(make(tmp_path, batch_size=8, epoch_rows=16).train_dataloader()) == 2


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    shares=st.lists(st.floats(0.1, 1), min_size=4, max_size=4),
    total=st.integers(1, 60),
)
def test_even_interleaving_and_full_passes(sizes, shares, total):
    weights = np.array(shares[: len(sizes)])
    ends = np.rint(np.cumsum(weights / weights.sum()) * total).astype(int)
    counts = tuple(int(n) for n in np.diff(ends, prepend=0))
    mixed = Mixed(tuple(sizes), counts, True)
    offsets = np.cumsum([0, *sizes])
    seen = [Counter() for _ in sizes]
    for epoch in range(3):
        order = mixed(7, epoch)
        assert len(order) == total
        part = np.searchsorted(offsets, order, side="right") - 1
        for p, count in enumerate(counts):
            taken = np.cumsum(part == p)
            ideal = (np.arange(total) + 1) * count / total
            assert np.abs(taken - ideal).max() <= len(sizes)
            seen[p].update(order[part == p].tolist())
            times = [seen[p][int(i)] for i in range(offsets[p], offsets[p + 1])]
            assert max(times) - min(times) <= 1


def test_impossible_mixtures(tmp_path):
    part = kit.Echo("a.jsonl")
    for parts, message in [
        ({}, "needs parts"),
        ({"a": Part(part, 0.0)}, "ratio 0.0"),
        ({"a": Part(Mixture({"b": Part(part)}))}, "single data module"),
        ({"a": Part(kit.Echo("a.jsonl", tokenizer="x"))}, "own tokenizer"),
        ({"a": Part(PlainText("a.jsonl", streaming=True))}, "without streaming"),
    ]:
        with pytest.raises(KDError, match=message):
            Mixture(parts)
