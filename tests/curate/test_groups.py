"""Lists of candidates made and undone."""

from kd_lightning.curate.groups import Flatten, Groups
from tests.curate.kit import ids, ran, records, work

ROWS = records(
    {"prompt": "p", "answer": "a", "score": 1, "topic": "t"},
    {"prompt": "q", "answer": "b", "score": 2, "topic": "t"},
    {"prompt": "p", "answer": "c", "score": 3, "topic": "u"},
    {"prompt": "p"},
)


def test_answers_to_one_prompt_become_candidates():
    at = work()
    (one,) = Groups().run(ROWS, at)
    assert dict(one.values) == {"prompt": "p", "candidates": ["a", "c"], "scores": [1, 3]}
    assert one.lineage == ({"step": "curator", "from": ["r0", "r2"]},)
    assert at.tally.dropped == {"group too small": 1, "no answer": 1}
    assert at.tally.notes == {"records put together": 1}
    assert ran(Groups(least=1, most=1), ROWS)[1]["group has enough"] == ["r2"]


def test_candidates_become_records():
    rows = records(
        {"prompt": "p", "candidates": ["a", "b"], "scores": [1, 2], "sources": ["x"]}, {}
    )
    at = work()
    first, second = Flatten().run(rows, at)
    assert (first.id, second.id) == ("r0/0", "r0/1")
    assert dict(second.values) == {"prompt": "p", "answer": "b", "score": 2, "sources": ["x"]}
    assert at.tally.dropped == {"no candidates": 1}


def test_there_and_back():
    rows = records(
        *({"prompt": p, "candidates": [p + "1", p + "2"], "scores": [1, 2]} for p in "pq")
    )
    for by in ("prompt", "root"):
        back = Groups(by=by).run(Flatten().run(rows, work()), work())
        assert [dict(r.values) for r in back] == [dict(r.values) for r in rows]
        assert ids(back) == ["r0/0", "r1/0"]
