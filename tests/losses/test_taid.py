"""The schedule of TAID's target."""

import math

import pytest
import torch

from kd_lightning.losses.taid import TAID
from kd_lightning.types import Progress


def run(loss, values, first=0, total=1000):
    """t after each step."""
    seen = []
    for step, value in enumerate(values, first):
        loss.begin_step(Progress(step, total))
        loss.end_step({"taid": torch.tensor(value)})
        seen.append(loss.t.item())
    return seen


def written_out(values, total, start=0.4, end=1.0, pace=5e-4, momentum=0.99):
    """The paper's algorithm in plain numbers."""
    t, smooth, before, seen = start, 0.0, None, []
    for step, value in enumerate(values):
        t = max(t, start + (end - start) * step / total)
        if before is not None:
            smooth = momentum * smooth + (1 - momentum) * (before - value) / before
            t = max(t, min(end, t + pace / (1 + math.exp(-smooth)) * (1 - t)))
        before = value
        seen.append(t)
    return seen


VALUES = [2.0 / (1 + 0.1 * n) + 0.1 * math.sin(n) for n in range(60)]


@pytest.mark.parametrize(("total", "pace"), [(100, 5e-4), (10_000, 0.05), (60, 0.0)])
def test_follows_the_algorithm_and_never_falls(total, pace):
    loss = TAID(pace=pace, momentum=0.9)
    got = run(loss, VALUES, total=total)
    assert got == pytest.approx(written_out(VALUES, total, pace=pace, momentum=0.9), abs=1e-5)
    assert got == sorted(got)
    assert got[-1] > got[0]


def test_a_better_student_moves_the_target_faster():
    better = run(TAID(pace=0.05, momentum=0.5), [2.0 * 0.5**n for n in range(20)], total=10**6)
    worse = run(TAID(pace=0.05, momentum=0.5), [2.0 * 1.5**n for n in range(20)], total=10**6)
    assert better[-1] > worse[-1] + 0.01


def test_ends_at_the_end():
    loss = TAID(end=0.8, pace=1.0, momentum=0.0)
    assert max(run(loss, VALUES, total=10)) <= 0.8 + 1e-6
    assert loss.t.item() == pytest.approx(0.8)


def test_without_a_known_length_it_still_moves():
    assert run(TAID(), VALUES, total=0)[-1] > 0.4


def test_a_step_that_counted_nothing_is_no_progress():
    loss, other = TAID(pace=0.05), TAID(pace=0.05)
    values = [2.0, 1.5, 1.2]
    want = run(loss, values, total=10**9)
    got = run(other, [2.0, 1.5, 0.0, float("nan"), 1.2], total=10**9)
    assert got[-1] == pytest.approx(want[-1], abs=1e-6)


def test_the_state_is_in_the_checkpoint():
    whole, first, second = TAID(pace=0.05), TAID(pace=0.05), TAID(pace=0.05)
    run(whole, VALUES)
    run(first, VALUES[:25])
    second.load_state_dict(first.state_dict())
    run(second, VALUES[25:], first=25)
    assert torch.equal(second.state, whole.state)
    assert not list(whole.parameters())


def test_half_precision_does_not_round_the_schedule():
    plain, half = TAID(), TAID().to(torch.bfloat16)
    assert run(half, VALUES, total=10**9) == run(plain, VALUES, total=10**9)
    assert half.t.item() > 0.4


def test_equal_values_give_equal_targets():
    ranks = [TAID(), TAID()]
    assert run(ranks[0], VALUES) == run(ranks[1], VALUES)
