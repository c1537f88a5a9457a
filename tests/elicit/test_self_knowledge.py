"""A model's own answers: the best of several, the accepted ones, with a hint where none is."""

import pytest

from kd_lightning.elicit import Accepted, BestOf, Rate
from kd_lightning.errors import KDError
from kd_lightning.knowledge.step import Step
from tests.elicit.kit import Rule, last, records, run, whole


class Right(Step):
    """Accepts answers that are the reference."""

    def run(self, records, work):
        for record in records:
            if record["answer"] != record["reference"]:
                work.drop(record, "wrong")
        return [r for r in records if r["answer"] == r["reference"]]


class Longest(Step):
    """Scores candidates by their length."""

    def run(self, records, work):
        return [
            r.changed("longest", scores=[len(c) for c in r["candidates"]])
            for r in records
            if "fall" not in r["prompt"] or work.drop(r, "fell")
        ]


def test_the_best_of_n_is_the_answer(tmp_path):
    student = Rule(lambda r: ["a", "aaa", "aa", "aaa"])
    made, work = run(BestOf(Longest()), records("p", "fall"), tmp_path, student=student)
    assert [(r.id, r["answer"], r["scores"]) for r in made] == [("r0", "aaa", [1, 3, 2, 3])]
    assert work.tally.dropped == {"fell": 1}


def test_its_scorer_asks_another_generator(tmp_path):
    step = BestOf(Rate({"truth": "?"}, field="candidates"), n=2)
    assert set(step.needs()) == {"student", "teacher"}
    student, teacher = Rule(lambda r: ["bad", "good"]), Rule(lambda r: f"truth: {rate(r)}")
    made, _ = run(step, records("p"), tmp_path, student=student, teacher=teacher)
    assert made[0]["answer"] == "good" and made[0]["scores"] == [2.0, 4.0]


def rate(request):
    return 4 if "good" in last(request) else 2


def test_a_scorer_that_writes_no_scores_is_refused(tmp_path):
    class Silent(Step):
        def run(self, records, work):
            return list(records)

    with pytest.raises(KDError, match="Silent wrote no score for each candidate"):
        run(BestOf(Silent()), records("p"), tmp_path, student=Rule(lambda r: list("abcd")))


def guesses(request):
    """Knows 2, guesses at 3, needs the hint for 7."""
    told = whole(request)
    if "Correct answer: 7" in told:
        return ["told\nAnswer: 7"] * request.n
    if "three" in told:
        return [f"way {i}\nAnswer: {3 if i % 2 else 4}" for i in range(request.n)]
    return [f"way {i // 2}\nAnswer: 2" for i in range(request.n)]


ROWS = records(
    {"prompt": "two", "reference": "2"},
    {"prompt": "three", "reference": "3"},
    {"prompt": "seven", "reference": "7"},
)


def test_different_accepted_answers_are_kept_up_to_a_number(tmp_path):
    step = Accepted([Right()], n=4, most=3)
    made, work = run(step, ROWS, tmp_path, student=Rule(guesses))
    assert [(r.id, r["rationale"]) for r in made] == [
        ("r0/0", "way 0"), ("r0/2", "way 1"), ("r1/1", "way 1"), ("r1/3", "way 3"),
    ]  # fmt: skip
    assert work.tally.dropped == {
        "wrong": 2 + 4, "the same as another accepted answer": 2, "no accepted answer": 1,
    }  # fmt: skip
    (tmp_path / "one").mkdir()
    made, work = run(Accepted([Right()]), ROWS, tmp_path / "one", student=Rule(guesses))
    assert [r.id for r in made] == ["r0/0", "r1/1"]
    assert work.tally.dropped["more than 1 accepted"] == 2 + 1


def test_where_none_is_accepted_the_hint_helps(tmp_path):
    student = Rule(guesses)
    made, work = run(Accepted([Right()], hint="rationalise"), ROWS, tmp_path, student=student)
    assert [(r.id, r["answer"], r.get("hinted")) for r in made] == [
        ("r0/0", "2", None), ("r1/1", "3", None), ("r2/h0", "7", True),
    ]  # fmt: skip
    hinted = [r for r in student.asked if "Correct answer" in last(r)]
    assert [last(r).count("seven") for r in hinted] == [1], "only where it is needed"
    assert "no accepted answer" not in work.tally.dropped
    assert work.tally.notes["accepted without a hint"] == 2


def test_a_record_without_any_good_answer_falls_once(tmp_path):
    made, work = run(Accepted([Right()]), ROWS[:1], tmp_path, student=Rule(lambda r: ["?"] * r.n))
    assert not made and work.tally.dropped == {"no accepted answer": 1}
    assert work.tally.notes["without an answer: malformed: no Answer:"] == 1


def test_a_filter_is_needed():
    with pytest.raises(KDError, match="at least one filter"):
        Accepted([])
