"""Ranking losses raise what a rule says of a student's own answers; random ranks do not."""

from functools import cache

import pytest
import torch

from benchmarks.four_rules import careless, oracle, prompts_of
from benchmarks.preference_task import METHODS, Size, change, measure
from benchmarks.random_ranks import at_random, balanced, leaning, turned

SEEDS = {"dpo": 6, "kto": 6}
"""Others: 4; the controls of these two wander most."""


def test_the_rules():
    prompts = torch.tensor([[1, 5]] * 5)
    answers = torch.tensor(
        [
            [5, 6, 2, 0, 0, 0, 0, 0],
            [6, 6, 2, 0, 0, 0, 0, 0],
            [5, 3, 2, 0, 0, 0, 0, 0],
            [5, 6, 6, 6, 6, 6, 2, 0],
            [6, 3, 6, 6, 6, 6, 6, 6],
        ]
    )
    assert oracle(prompts, answers).tolist() == [4, 3, 3, 3, 0]
    drawn = torch.Generator().manual_seed(0)
    prompts = prompts_of(2000, drawn)
    assert 2.2 < oracle(prompts, careless(prompts, drawn)).mean() < 3.2  # far from 0 and 4


def test_ranks_turned_prefer_the_other():
    scores = torch.tensor([[3.0, 1.0, 4.0, 2.0], [2.0, 2.0, 1.0, 0.0]])
    assert turned(scores).tolist() == [[2.0, 4.0, 1.0, 3.0], [1.0, 0.0, 2.0, 2.0]]


def test_balanced_ranks_are_random_and_lean_to_nothing():
    drawn = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (1000, 4), generator=drawn).float()
    facts = torch.stack([scores, torch.rand(scores.shape, generator=drawn)], -1)

    def lean(ranks):
        return leaning(ranks, facts / facts.flatten(0, 1).std(0)).mean(0).abs().max()

    plain, made = at_random(scores, drawn), balanced(scores, facts, drawn)
    assert (made.sort(1).values == scores.sort(1).values).all()
    assert lean(made) < 0.01 < lean(plain) < lean(scores)
    first = balanced(torch.arange(4.0).expand(1000, 4), torch.zeros(1000, 4, 1), drawn)
    assert (first.mean(0) - 1.5).abs().max() < 0.15  # every place is the best as often


@cache
def arms(method, leak=0.0):
    return [measure(seed, (method,), Size(), leak=leak) for seed in range(SEEDS.get(method, 4))]


def random_ranks_teach(method, leak=0.0):
    """Whether they may give a third of what the right ones give, a standard error included."""
    won = change(arms(method), method)
    lost = change(arms(method, leak), f"shuffled {method}", f"reversed {method}")
    return lost.mean + lost.error > won.mean / 3, won, lost


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_right_ranks_raise_the_score_of_every_seed_and_random_ones_do_not_on_average(method):
    for found in arms(method):
        assert found[method].divergence <= Size().budget
        controls = [found[f"{order} {method}"].score for order in ("shuffled", "reversed")]
        lost = max(found["start"].score, sum(controls) / 2)
        assert found[method].score > lost + 0.25, found
    taught, won, lost = random_ranks_teach(method)
    assert not taught, (won, lost)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tenth_of_right_ranks_in_the_control_is_noticed():
    taught, won, lost = random_ranks_teach("kto", leak=0.1)
    assert taught, (won, lost)
