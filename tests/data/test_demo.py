"""The demo skill: rows from a seed, right answers, wrong labels where they are asked for."""

import re

import pytest

from kd_lightning.data.rows import Row
from kd_lightning.data.skills import Demo
from kd_lightning.data.skills.demo import final
from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.errors import KDError

SPLITS = ("train", "validation", "test")


def evaluate(prompt):
    """The right answer, read out of the instruction by other means than the generator's."""
    if found := re.fullmatch(r"What is (\d+)\+(\d+)\?", prompt):
        return str(int(found[1]) + int(found[2]))
    if found := re.fullmatch(r"Reverse (\w+)\.", prompt):
        return "".join(reversed(found[1]))
    if found := re.fullmatch(r"Sort the letters of (\w+)\.", prompt):
        return "".join(c * found[1].count(c) for c in "abcdefghijklmnopqrstuvwxyz")
    if found := re.fullmatch(r"Last letters of (\w+) (\w+)\?", prompt):
        return "".join(word[len(word) - 1] for word in found.groups())
    found = re.fullmatch(r"(.+)\. (\w)\?", prompt)
    return dict(pair.split("=") for pair in found[1].split(", "))[found[2]]


def check_steps(answer):
    """Every written step is true, and the last one leads to the sum."""
    steps, total = answer.split(" so ")
    for step in steps.split():
        left, right = step.split("=")
        assert sum(map(int, left.split("+"))) == int(right)
    ones, tens = (int(step.split("=")[1]) for step in steps.split())
    assert 10 * tens + ones % 10 == int(total)


def rows(split="train", **settings):
    return list(Demo(**settings).rows(split))


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right(split):
    made = rows(split, train_rows=1500, validation_rows=500, test_rows=500)
    assert {row["family"] for row in made} == set(FAMILIES)
    for row in made:
        assert final(row["answer"]) == evaluate(row["prompt"]), row
        if row["family"] == "addition":
            check_steps(row["answer"])


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    first, second, other = rows(row_seed=3), rows(row_seed=3), rows(row_seed=4)
    assert first == second
    prompts = {row["prompt"] for row in first}
    assert len(prompts) == len(first) == 3000
    assert len(prompts & {row["prompt"] for row in other}) < 0.5 * len(prompts)


def test_no_prompt_is_in_two_splits_whatever_the_seeds_and_sizes():
    seen = {split: set() for split in SPLITS}
    for row_seed in range(3):
        for split in SPLITS:
            made = rows(split, row_seed=row_seed, train_rows=10_000, test_rows=1000)
            seen[split] |= {row["prompt"] for row in made}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_label_errors_touch_their_share_of_every_family_of_the_training_rows_alone():
    settings = {"train_rows": 1000, "label_errors": 0.4}
    made = rows("train", **settings)
    for family in FAMILIES:
        here = [row for row in made if row["family"] == family]
        slipshod = [row for row in here if row["labeller"] == "slipshod"]
        assert (len(here), len(slipshod)) == (200, 80)
        wrong = [row for row in here if final(row["answer"]) != evaluate(row["prompt"])]
        assert wrong and all(row["labeller"] == "slipshod" for row in wrong)
    for split in ("validation", "test"):
        for row in rows(split, **settings):
            assert final(row["answer"]) == evaluate(row["prompt"])


def test_the_wrong_rows_are_the_right_ones_with_another_label():
    clean, noisy = rows(label_errors=0.0), rows(label_errors=0.5)
    assert {row["prompt"] for row in clean} == {row["prompt"] for row in noisy}


def slips(family):
    return [item for item in draw(family, "train", 300, 0) if item.slip != item.answer]


def test_the_slips_are_those_that_are_named():
    for item in slips("addition"):
        a, b = re.findall(r"\d+", item.prompt)
        tens, ones = int(a[0]) + int(b[0]), int(a[1]) + int(b[1])
        assert ones > 9 and final(item.slip) == f"{tens}{ones % 10}"
    for item in slips("reversal"):
        assert len(item.slip) > 2 and item.slip + item.prompt[8] == item.answer
    for item in slips("sorting"):
        assert item.slip + max(item.answer) == item.answer
    for item in slips("endings"):
        assert item.slip == item.answer[0] + item.prompt.split()[-1][0]
    for item in slips("lookup"):
        assert item.slip in re.findall(r"\d+", item.prompt)


def test_families_are_the_skills_and_share_the_rows():
    data = Demo(train_rows=100, families=["lookup", "sorting", "reversal"])
    assert data.skills == ("lookup", "sorting", "reversal")
    made = list(data.rows("train"))
    counts = [sum(row["family"] == name for row in made) for name in data.skills]
    assert counts == [34, 33, 33]


def test_grading():
    data = Demo()
    row = next(r for r in data.rows("test") if r["family"] == "addition")
    example = data.render(Row(row, place="here", id="a"))
    right = row["answer"]
    assert data.grade(example, f" {right}\n") == {"exact_match": 1.0}
    assert data.grade(example, f"1+1=2 so {final(right)}") == {"exact_match": 1.0}
    assert data.grade(example, right + "0") == {"exact_match": 0.0}
    assert data.grade(example, "") == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"families": ["cooking"]}, "cooking is no family: choose among addition"),
        ({"families": []}, "families is empty"),
        ({"label_errors": 1.5}, "share from 0 to 1"),
        ({"test_rows": 3}, "test_rows=3 is too few for 5 families"),
        ({"path": "my.jsonl"}, "reads no file"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, said):
    with pytest.raises(KDError, match=re.escape(said)):
        Demo(**settings)


def test_a_family_that_runs_out_says_so():
    with pytest.raises(KDError, match="family addition has about"):
        rows("test", test_rows=2000, families=["addition"])
