"""A judge in training is watched: empty answers must earn nothing, and judgements must be read."""

import math

import pytest

from kd_lightning.errors import KDError
from kd_lightning.rewards.canary import Canary
from kd_lightning.rewards.judge import Judge
from kd_lightning.rewards.pair_judge import PairJudge
from kd_lightning.rewards.readable import Readable
from tests.rewards.kit import Says, batch_of, checked


def between(text, head="Answer to be scored"):
    return text.split(f"{head}:\n")[1].split("\n####")[0]


def honest(text):
    return "Score: 6" if between(text, "Answer").startswith("good") else "Score: 1"


def watched(rule, **settings):
    judge = Judge("judge_quality", by="text", low=1, high=6, field="quality")
    return checked(Canary(judge, **settings), Says(text=rule))


def test_an_honest_judge_is_looked_at_first_and_every_so_many_steps():
    reward = watched(honest, every=3)
    batch = batch_of(["q"] * 4)
    looks = []
    for _ in range(7):
        found = reward(batch, ["good one", "bad", "good two", "bad"])
        assert found.tolist() == [1.0, -1.0, 1.0, -1.0], "the numbers are the judge's"
        looks.append(reward.logs().get("canaries", 0.0))
    assert looks == [12.0, 0.0, 0.0, 12.0, 0.0, 0.0, 12.0]


def test_a_judge_that_one_sign_fools_stops_the_run_also_later():
    fooled = {"now": False}

    def rule(text):
        return "Score: 6" if fooled["now"] and between(text, "Answer") == ":" else honest(text)

    reward = watched(rule, every=2)
    batch = batch_of(["q"] * 5)
    reward(batch, ["good"] * 5)
    fooled["now"] = True
    reward(batch, ["good"] * 5)
    with pytest.raises(KDError, match="Judge lets 1 of 10 answers pass that say nothing"):
        reward(batch, ["good"] * 5)
    assert reward.logs()["canaries_passed"] == 1.0


def test_among_pairs_an_empty_answer_must_not_win_its_group():
    def fair(text):
        a, b = (text.split(f"Answer {x}:\n")[1].split("\n####")[0] for x in "AB")
        return [0.0, -9.0] if a.startswith("good") and not b.startswith("good") else [-9.0, 0.0]

    batch = batch_of(["q"] * 4, group=[0, 0, 1, 1])
    reward = checked(Canary(PairJudge(), passes=None), Says(choices=fair))
    assert reward(batch, ["good", "bad", "good", "bad"]).tolist() == pytest.approx(
        [1, 0, 1, 0], abs=1e-3
    )
    blind = checked(Canary(PairJudge(), passes=None), Says(choices=lambda text: [0.0, 0.0]))
    with pytest.raises(KDError, match="10 of 10"):
        blind(batch, ["good", "bad", "good", "bad"])
    with pytest.raises(KDError, match="draw several answers"):
        reward_of_one = checked(Canary(PairJudge(), passes=None), Says(choices=fair))
        reward_of_one(batch_of(["q"], group=[0]), ["good"])


@pytest.mark.parametrize("judge", ["written", "choices"])
def test_a_judge_whose_answers_cannot_be_read_stops_the_run(judge):
    if judge == "written":
        reward, says = Judge("judge_quality", by="text", high=6, field="quality"), {"text": None}
        says["text"] = iter(["?", "Score: 3", "Score: 4"] * 20).__next__
        teacher = Says(text=lambda text: says["text"]())
    else:
        told = iter([[math.nan] * 9, [0.0] * 9, [0.0] * 9] * 20)
        reward, teacher = Judge(), Says(choices=lambda text: next(told))
    checked(reward, teacher)
    batch = batch_of(["q"] * 10)
    for _ in range(4):
        assert reward(batch, ["a"] * 10).isnan().sum() in (3, 4)
    with pytest.raises(KDError, match=r"17 of the last 50 judgements could not be read"):
        reward(batch, ["a"] * 10)


def test_a_fifth_may_be_lost_and_each_window_is_looked_at_alone():
    kept = Readable(0.2, "J")
    for _ in range(100):
        kept.add(50, 10)
    kept.add(49, 11)
    with pytest.raises(KDError, match="11 of the last 50"):
        kept.add(1, 0)
    with pytest.raises(KDError, match="share"):
        Readable(2.0, "J")
