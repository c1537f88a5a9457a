"""Ranking losses raise what a rule says of a student's own answers; random ranks do not."""

import pytest
import torch

from benchmarks.preference_task import METHODS, Size, careless, measure, oracle, prompts_of

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
    control = scores[f"shuffled {method}"]
    assert min(scores[method]) > max(*scores["start"], *control)
    assert sum(scores[method]) - sum(control) > 0.25 * SEEDS
    assert all(found[method].divergence <= Size().budget for found in arms)
