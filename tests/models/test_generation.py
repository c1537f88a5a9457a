"""Answers: batched equals single, reproducible, ended by any of the end tokens."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Sampling


@pytest.fixture(scope="module")
def teacher(stories):
    made = LocalTeacher(stories)
    made.materialize(torch.device("cpu"))
    return made


def test_batched_answers_equal_single_ones(teacher):
    texts = ["Once upon a time", "Lily", "The dog ran to the big tree and"]
    prompts = [teacher.tokenizer(t)["input_ids"] for t in texts]
    together = teacher.complete(prompts, Sampling(max_new_tokens=12))
    alone = [teacher.complete([p], Sampling(max_new_tokens=12))[0] for p in prompts]
    assert together == alone
    assert together[0].text.startswith(", there was a little girl")


def test_sampling_is_reproducible_and_leaves_the_generator_alone(teacher):
    prompt = [teacher.tokenizer("Once")["input_ids"]]
    before = torch.get_rng_state()
    a = teacher.complete(prompt, Sampling(20, temperature=1.0, seed=1))
    b = teacher.complete(prompt, Sampling(20, temperature=1.0, seed=1))
    c = teacher.complete(prompt, Sampling(20, temperature=1.0, seed=2))
    assert a == b and a != c
    assert torch.equal(before, torch.get_rng_state())


def test_the_models_own_end_tokens_count(teacher):
    prompt = [teacher.tokenizer("Once upon a time")["input_ids"]]
    done = teacher.complete(prompt, Sampling(400))[0]
    assert done.finished and done.tokens[-1] in (1, 2)
    cut = teacher.complete(prompt, Sampling(5))[0]
    assert not cut.finished and len(cut.tokens) == 5


def test_a_prompt_that_fills_the_model_is_refused(teacher):
    with pytest.raises(KDError, match="no room"):
        teacher.complete([[5] * 512], Sampling(4))
