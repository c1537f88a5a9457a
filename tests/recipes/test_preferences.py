"""Recipes whose sets are preferences, classes and quantiles: who says what, and what is learned."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest

from tests.elicit.kit import Rule, last
from tests.recipes.kit import recipe

ROWS = [{"prompt": f"q{i}", "answer": "gold"} for i in range(12)]


def value(text: str) -> int:
    return int(re.findall(r"answer (\d+)", text)[-1])


def drawn(seed: int = 0, most: int = 100) -> Rule:
    """Answers with numbers, which are their worth."""
    rng = random.Random(seed)
    numbers = lambda request: rng.sample(range(most), request.n)  # noqa: E731
    return Rule(lambda request: [f"answer {n}" for n in numbers(request)], name="student")


def liking(request) -> list[float]:
    """The larger number, and a little what is shown first."""
    first, second = (int(n) for n in re.findall(r"answer (\d+)", last(request)))
    lead = (first - second) / 10 + 1
    return [-math.log1p(math.exp(-lead)), -math.log1p(math.exp(lead))]


def test_spin_sets_gold_against_the_students_own(tmp_path):
    made = recipe("spin", tmp_path, {"student": drawn()}, [
        {"prompt": row["prompt"], "reference": row["answer"]} for row in ROWS
    ])  # fmt: skip
    assert len(made) == len(ROWS)
    assert all(r["chosen"] == "gold" and r["rejected"].startswith("answer") for r in made)
    assert set(made[0].values) == {"prompt", "chosen", "rejected"}


def test_spin_has_no_pair_where_the_student_says_the_same(tmp_path):
    same = Rule(lambda request: "gold", name="student")
    rows = [{"prompt": "q", "reference": "gold"}, {"prompt": "r", "reference": "other"}]
    assert [r["prompt"] for r in recipe("spin", tmp_path, {"student": same}, rows)] == ["r"]


def test_a_self_rewarding_students_best_stands_against_its_worst(tmp_path):
    said: dict[str, list[int]] = {}
    rng = random.Random(0)

    def student(request):
        text = last(request)
        if "Answer to be scored" in text:
            assert "from 0 (worst) to 5 (best)" in text and "One point each" in text
            worth = value(text) // 20
            return [str(min(5, max(0, worth + d))) for d in (0, 1, -1)]
        numbers = rng.sample(range(20, 80), request.n)
        said[text] = numbers
        return [f"answer {n}" for n in numbers]

    made = recipe("self_rewarding", tmp_path, {"student": Rule(student, name="student")}, ROWS)
    assert all(len(numbers) == 4 for numbers in said.values())
    assert 0 < len(made) <= len(ROWS)
    for record in made:
        worth = [n // 20 for n in said[record["prompt"]]]
        assert value(record["chosen"]) // 20 == max(worth)
        assert value(record["rejected"]) // 20 == min(worth)
        assert record["margin"] == max(worth) - min(worth)


@pytest.mark.parametrize("name", ["rlaif", "constitutional_ai_preferences"])
def test_a_judge_is_asked_in_both_orders(name, tmp_path):
    judge = Rule(choices=liking, name="judge")
    made = recipe(name, tmp_path, {"student": drawn(), "judge": judge}, ROWS)
    assert len(made) == len(ROWS) and len(judge.asked) == 2 * len(ROWS)
    for record in made:
        gap = (value(record["candidates"][0]) - value(record["candidates"][1])) / 10
        share = (1 / (1 + math.exp(-gap - 1)) + 1 - 1 / (1 + math.exp(gap - 1))) / 2
        assert record["scores"] == pytest.approx([share, 1 - share])
    if name != "rlaif":
        asked = {last(request).split("Which answer ")[1] for request in judge.asked}
        assert len(asked) > 2
        assert all(record["criterion"] in " ".join(asked) for record in made)


def test_an_answer_alone_is_not_compared(tmp_path):
    told = iter(["answer 1", "answer 2…", "answer 3", "answer 4"])
    student = Rule(lambda request: [next(told) for _ in range(request.n)], name="student")
    judge = Rule(choices=liking, name="judge")
    made = recipe("rlaif", tmp_path, {"student": student, "judge": judge}, ROWS[:2])
    assert [record["candidates"] for record in made] == [["answer 3", "answer 4"]]
    assert len(judge.asked) == 2


def test_rlcd_asks_for_good_and_bad_and_learns_neither_wish(tmp_path):
    def student(request):
        return f"to: {last(request).split('an answer that is ')[1]}"

    made = recipe("rlcd", tmp_path, {"student": Rule(student, name="student")}, ROWS)
    assert len({record["wish"]["good"] for record in made}) > 2
    for record in made:
        assert record["chosen"] == f"to: {record['wish']['good']}.)"
        assert record["rejected"] == f"to: {record['wish']['bad']}.)"
        assert "wanted" not in record["prompt"]


def test_crlft_weighs_its_classes_by_one_and_a_tenth(tmp_path):
    rows = [{**row, "source": "expert" if i % 3 else "other"} for i, row in enumerate(ROWS)]
    made = recipe("crlft", tmp_path, {}, rows)
    assert len(made) == len(ROWS)
    for record in made:
        expert = record["source"] == "expert"
        assert record["prompt"].startswith("[expert] q" if expert else "[other] q")
        weight = math.exp(float(record["label"]) / 1.0)
        assert weight == pytest.approx(1.0 if expert else 0.1, rel=1e-6)


def test_quark_asks_for_the_best_and_says_which_fifth_an_answer_is_of(tmp_path):
    student, reward = drawn(), Rule(lambda request: str(value(last(request))), name="reward")
    made = recipe("quark", tmp_path / "a", {"student": student, "reward": reward}, ROWS)
    assert all(last(request).startswith("[5] q") for request in student.asked)
    assert len(made) == 4 * len(ROWS) and all(r["score"] == value(r["answer"]) for r in made)
    assert not any("[5]" in record["prompt"] for record in made)
    rows = [record.as_row() for record in made]
    told = recipe("quark_tokens", tmp_path / "b", {}, rows)
    worst = {f"[{k}]": [] for k in range(1, 6)}
    for record in told:
        worst[record["prompt"].split()[0]].append(record["score"])
    found = list(worst.values())
    assert all(8 <= len(scores) <= 11 for scores in found)
    assert all(max(a) <= min(b) for a, b in pairwise(found))


def test_raft_keeps_the_best_of_eight(tmp_path):
    student, reward = drawn(), Rule(lambda request: str(value(last(request))), name="reward")
    made = recipe("raft", tmp_path, {"student": student, "reward": reward}, ROWS)
    assert [r["prompt"] for r in made] == [row["prompt"] for row in ROWS]
    assert len(reward.asked) == 8 * len(ROWS)
    asked = {}
    for request in reward.asked:
        prompt = re.search(r"Task:\n(q\d+)", last(request))[1]
        asked.setdefault(prompt, []).append(value(last(request)))
    assert all(value(r["answer"]) == max(asked[r["prompt"]]) for r in made)


def test_zephyr_draws_whom_the_best_beats(tmp_path):
    rows = [
        {"prompt": f"q{i}", "candidates": ["a", "b", "c", "d"], "scores": [1.0, 4.0, 2.0, 3.0]}
        for i in range(40)
    ]
    made = recipe("zephyr_pairs", tmp_path, {}, rows)
    assert {r["chosen"] for r in made} == {"b"}
    assert {r["rejected"] for r in made} == {"a", "c", "d"}
    assert {r["margin"] for r in made} == {1.0, 2.0, 3.0}
