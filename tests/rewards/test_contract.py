"""What holds for every reward."""

import inspect

import pytest
import torch

import kd_lightning.rewards
from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Reward
from kd_lightning.rewards.combine import Combine, Part
from kd_lightning.rewards.settle import settle
from kd_lightning.rewards.shaping import Format, Length
from kd_lightning.teachers.generator import GeneratorError
from tests.rewards.kit import Says, batch_of, checked

NAN = float("nan")
NEEDED = {
    "ByCondition": {"values": {"good:": 1.0}},
    "Canary": {"reward": Length(low=9, unit="words")},
    "Combine": {"rewards": {"short": Part(Length(high=2, unit="words"))}},
    "Format": {"pattern": "a+"},
    "RewardModel": {"path": "nowhere"},
}
CLASSES = [getattr(kd_lightning.rewards, name) for name in kd_lightning.rewards.__all__]


def build(cls):
    return cls(**NEEDED.get(cls.__name__, {}))


def test_every_reward_is_found_by_its_name():
    assert set(kd_lightning.rewards.__all__) == {
        "ByCondition", "Canary", "Combine", "Format", "Grade", "Judge", "Length", "PairJudge",
        "Ratio", "RewardModel",
    }  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_constructors_store_every_setting_under_its_name(cls):
    made = build(cls)
    for name in inspect.signature(cls).parameters:
        assert hasattr(made, name)
    assert made.logs() == {}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_answers_without_examples_are_refused(cls):
    with pytest.raises(KDError, match="needs the text of every row's answer"):
        build(cls)(batch_of(["a", "b"]), ["one"])


class Given(Reward):
    def __init__(self, *values):
        super().__init__()
        self.values = values

    def scores(self, batch, asked):
        assert [each.example.id for each in asked] == [f"r{i}" for i in range(len(asked))]
        return self.values


def test_fillers_and_what_is_no_number_are_nan():
    batch = batch_of(["a", "b", "c"], fillers=2)
    found = Given(1.0, NAN, float("inf"))(batch, ["x", "y", "z"])
    assert found.dtype == torch.float32 and found[0] == 1
    assert found[1:].isnan().all()


def test_a_group_falls_with_one_of_its_answers():
    rewards, keep, dropped = settle(torch.tensor([1.0, NAN, 2.0, 3.0]), torch.tensor([4, 4, 7, 7]))
    assert rewards[:2].isnan().all() and rewards[2:].tolist() == [2, 3]
    assert keep.tolist() == [False, False, True, True] and dropped == 1
    rewards, keep, dropped = settle(torch.tensor([1.0, NAN, 2.0]), None)
    assert keep.tolist() == [True, False, True] and dropped == 1
    assert settle(torch.tensor([0.0]), torch.tensor([0]))[2] == 0


def combined(how, *values, **more):
    parts = {f"p{i}": Part(Given(*v), w) for i, (v, w) in enumerate(values)}
    batch = batch_of(["q"] * len(values[0][0]), **more)
    return Combine(parts, how)(batch, ["x"] * len(batch)).tolist()


def test_sum_product_and_least():
    parts = [((1.0, 0.5), 1.0), ((4.0, 0.0), 0.5)]
    assert combined("sum", *parts) == [3.0, 0.5]
    assert combined("product", *parts) == [2.0, 0.0]
    assert combined("min", *parts) == [1.0, 0.0]


def test_ranks_within_the_group_only_and_ties_count_half():
    found = combined("quantile", ((1.0, 5.0, 5.0, 100.0, -1.0), 2.0), group=[0, 0, 0, 1, 1])
    assert found == [0.0, 1.5, 1.5, 2.0, 0.0]
    with pytest.raises(KDError, match="draw several for each"):
        combined("quantile", ((1.0, 2.0), 1.0))


@pytest.mark.parametrize("how", ["sum", "product", "min", "quantile"])
def test_what_one_part_does_not_know_nobody_knows(how):
    found = combined(how, ((1.0, NAN), 1.0), ((1.0, 1.0), 1.0), group=[0, 0])
    assert found[0] == found[0] and found[1] != found[1]


def test_a_negative_product_is_refused():
    with pytest.raises(KDError, match="reward p1 is negative"):
        combined("product", ((1.0,), 1.0), ((-1.0,), 1.0))


def test_parts_are_set_up_and_counted():
    judge = kd_lightning.rewards.Judge()
    both = Combine({"judge": Part(judge), "form": Part(Format("x"))})
    checked(both, Says(choices=lambda text: None))
    assert both(batch_of(["a"]), ["x"]).isnan().all()
    assert both.logs() == {"failed": 1.0} and both.logs() == {}
    with pytest.raises(KDError, match="no regular expression"):
        checked(Combine({"form": Part(Format("("))}))


@pytest.mark.parametrize("name", ["Judge", "PairJudge"])
def test_a_generator_that_cannot_go_on_stops_the_run(name):
    judge = getattr(kd_lightning.rewards, name)()
    checked(judge, Says(error=GeneratorError("the key is refused")))
    with pytest.raises(GeneratorError, match="the key is refused"):
        judge(batch_of(["a", "a"], group=[0, 0]), ["x", "y"])


def test_lengths_fall_on_both_sides():
    length = Length(low=2, high=3, soft=4, unit="words")
    texts = ["a", "a b", "a b c", "a b c d", "a " * 9]
    found = length(batch_of(["q"] * 5), texts)
    assert found.tolist() == [-0.25, 0.0, 0.0, -0.25, -1.0]
    assert Length(high=2, soft=4)(batch_of(["q"], words=3), ["x"]).tolist() == [-0.25]
    with pytest.raises(KDError, match="high at least low"):
        Length(low=3, high=2)


def test_form():
    found = Format(r"<a>.*</a>")(batch_of(["q"] * 2), ["<a>1\n2</a>", "so <a>1</a>"])
    assert found.tolist() == [1.0, 0.0]
    assert Format(r"<a>.*</a>", whole=False)(batch_of(["q"]), ["so <a>1</a>"]).tolist() == [1.0]
