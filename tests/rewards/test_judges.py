"""Judges: expected scores, verdicts in both orders, and what becomes of bad answers."""

import math

import pytest

from kd_lightning.errors import KDError
from kd_lightning.rewards.grade import Grade
from kd_lightning.rewards.judge import Judge
from kd_lightning.rewards.pair_judge import PairJudge
from kd_lightning.types import Example, Message, Sampling
from tests.rewards.kit import Says, batch_of, checked


def test_expected_score_over_the_numbers_alone():
    told = {"good": (0.1, 0.2, 0.1), "bad": (0.3, 0.0, 0.0)}  # the rest went to other words

    def choices(text):
        shares = told["good" if "Answer to be scored:\ngood" in text else "bad"]
        return [math.log(p) if p else -math.inf for p in shares]

    judge = checked(Judge(low=1, high=3), Says(choices=choices))
    found = judge(batch_of(["what?", "what?"]), ["good", "bad"])
    assert found.tolist() == pytest.approx([0.0, -1.0])  # means 2 and 1 of 1 .. 3
    sharp = checked(Judge(low=1, high=5), Says(choices=lambda text: [-90, -80, -70, -60, 0]))
    assert sharp(batch_of(["q"]), ["a"]).item() == pytest.approx(1.0)


def test_the_judge_sees_question_answer_rubric_and_numbers():
    teacher = Says(choices=lambda text: [0.0] * 5)
    judge = checked(Judge(low=1, high=5, given={"rubric": "Is it kind?"}), teacher)
    turns = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "why"))
    turns = (*turns, Message("assistant", "gold"))
    judge(batch_of([Example("r0", turns)]), ["because"])
    text = teacher.asked[0].prompt.messages[-1].content
    assert "user: hi\n\nassistant: yes?\n\nuser: why" in text and "because" in text
    assert "Is it kind?" in text and "from 1 (worst) to 5 (best)" in text
    assert teacher.asked[0].texts == ("1", "2", "3", "4", "5")


def test_numbers_that_begin_one_another_are_refused():
    with pytest.raises(KDError, match="'10' begins with the option '1'"):
        checked(Judge(low=1, high=10), Says())


def written(replies, **settings):
    said = iter(replies)
    judge = Judge("judge_quality", by="text", low=1, high=6, field="quality", **settings)
    teacher = Says(text=lambda text: next(said))
    return checked(judge, teacher), teacher


def test_written_scores_and_what_cannot_be_read():
    told = ["Fine. Score: 6", "no idea", "Score: 9", None, "It is … Score: 3…", "Score: 1"]
    judge, _ = written(told)
    found = judge(batch_of(["q"] * 6), ["a"] * 6).tolist()
    assert [found[0], found[5]] == [1.0, -1.0]
    assert all(math.isnan(value) for value in found[1:5])
    assert judge.logs() == {"failed": 1.0, "malformed": 3.0}


def test_only_what_could_not_be_read_is_asked_again_with_another_seed():
    how = Sampling(temperature=0.5, seed=7)
    judge, teacher = written(["Score: 6", "what?", "Score: 1"], attempts=2, sampling=how)
    assert judge(batch_of(["q", "q"]), ["a", "b"]).tolist() == [1.0, -1.0]
    assert [r.sampling.seed for r in teacher.asked] == [7, 7, 8]
    assert judge.logs() == {}
    with pytest.raises(KDError, match="temperature"):
        Judge(by="text", attempts=2)


def likes_the_first(text):
    return [math.log(0.9), math.log(0.1)]


def likes_the_longer(text):
    first, second = (text.split(f"Answer {x}:\n")[1].split("\n#### ")[0] for x in "AB")
    longer = len(first) > len(second)
    return [math.log(0.8), math.log(0.2)] if longer else [math.log(0.2), math.log(0.8)]


def test_a_liking_for_a_place_takes_no_side():
    batch = batch_of(["q"] * 2, group=[0, 0])
    judge = checked(PairJudge(), Says(choices=likes_the_first))
    assert judge(batch, ["a", "bb"]).tolist() == pytest.approx([0.5] * 2)
    once = checked(PairJudge(swap=False), Says(choices=likes_the_first))
    assert once(batch, ["a", "bb"]).tolist() == pytest.approx([0.9, 0.1])


def test_each_answer_against_the_others_of_its_group():
    judge = checked(PairJudge(), teacher := Says(choices=likes_the_longer))
    batch = batch_of(["q"] * 6, group=[0, 0, 0, 1, 1, 2], fillers=1)
    found = judge(batch, ["a", "bb", "ccc", "x", "yy", "alone"]).tolist()
    assert found[:5] == pytest.approx([0.2, 0.5, 0.8, 0.2, 0.8])
    assert math.isnan(found[5]) and math.isnan(found[6])
    assert len(teacher.asked) == 2 * (3 + 1)
    assert judge.logs() == {"alone": 1.0}


def test_written_verdicts_and_failures():
    said = iter(["Better: A", "Better: tie", "Better: B", None])
    judge = checked(PairJudge(by="text"), Says(text=lambda text: next(said)))
    found = judge(batch_of(["q"] * 4, group=[0, 0, 1, 1]), list("abcd")).tolist()
    assert found[:2] == [0.75, 0.25]
    assert math.isnan(found[2]) and math.isnan(found[3])
    assert judge.logs() == {"failed": 1.0}


def test_judges_say_at_set_up_whom_they_lack():
    with pytest.raises(KDError, match=r"write Judge's generator, or model\.teacher"):
        checked(Judge())
    silent = Says()
    silent.offers = frozenset()
    with pytest.raises(KDError, match="Judge needs log-probabilities of options"):
        checked(Judge(), silent)
    with pytest.raises(KDError, match="draw several for each"):
        checked(PairJudge(), Says())(batch_of(["q"]), ["a"])
    with pytest.raises(KDError, match="there is no template 'rubik'"):
        checked(Judge("rubik"), Says())


class Skill:
    def grade(self, example, answer):
        return {} if answer == "?" else {"same": float(answer == example.answer), "size": 0.5}


def test_the_skills_own_grader():
    batch = batch_of(["q"] * 3)
    grade = checked(Grade(), data=Skill())
    found = grade(batch, ["gold", "lead", "?"]).tolist()
    assert found[:2] == [1.0, 0.0] and math.isnan(found[2])
    assert grade.logs() == {"ungraded": 1.0}
    assert checked(Grade("size"), data=Skill())(batch, ["x"] * 3).tolist() == [0.5] * 3
    with pytest.raises(KDError, match="write one of same, size"):
        checked(Grade("odd"), data=Skill())(batch, ["x"] * 3)
    with pytest.raises(KDError, match="the run has none"):
        checked(Grade())
