"""Ranking losses raise what a rule says of a student's own answers; random ranks do not."""

import pytest
import torch

from benchmarks.preference_task import METHODS, Size, careless, measure, oracle, prompts_of
from benchmarks.random_ranks import at_random, balanced, leaning, turned

SEEDS = 3


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


@pytest.fixture(scope="module")
def arms():
    return [measure(seed, METHODS, Size()) for seed in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_the_worst_seed_beats_the_best_of_the_start_and_of_random_ranks(arms, method):
    scores = {
        name: [found[name].score for found in arms]
        for name in ("start", method, f"shuffled {method}")
    }
    lost = max(*scores["start"], *scores[f"shuffled {method}"])
    assert min(scores[method]) > lost + 0.25, scores
    assert all(found[method].divergence <= Size().budget for found in arms)
