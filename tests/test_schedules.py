"""Weights that follow the run."""

import pytest

from kd_lightning.schedules import Constant, Cosine, Linear
from kd_lightning.types import Progress


def values(schedule, steps=(0, 25, 50, 75, 100)):
    return [schedule(Progress(step, 100)) for step in steps]


def test_shapes():
    assert values(Constant(0.3)) == [0.3] * 5
    assert values(Linear(1.0, 0.0)) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert values(Linear(0.0, 2.0, until=0.5)) == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0])
    assert values(Cosine(0.0, 1.0)) == pytest.approx([0.0, 0.146447, 0.5, 0.853553, 1.0], abs=1e-6)
    assert values(Cosine(1.0, 0.0, until=0.5)) == pytest.approx([1.0, 0.5, 0.0, 0.0, 0.0])


def test_beyond_the_end_the_end_holds():
    assert Linear(1.0, 0.25)(Progress(150, 100)) == 0.25


@pytest.mark.parametrize("schedule", [Linear(0.0, 1.0), Cosine(0.0, 1.0)])
def test_a_run_of_unknown_length_is_refused(schedule):
    with pytest.raises(ValueError, match="max_steps"):
        schedule(Progress(3, 0))
    assert Constant(1.0)(Progress(3, 0)) == 1.0


@pytest.mark.parametrize("until", [0.0, -1.0, 1.5])
def test_until_is_a_fraction(until):
    with pytest.raises(ValueError, match="until"):
        Linear(0.0, 1.0, until=until)
