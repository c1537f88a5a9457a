"""A weight that changes during a run: a function of the optimizer step alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from kd_lightning.errors import KDError
from kd_lightning.types import Progress


class Schedule(ABC):
    """A number for every step; the same on all ranks and after a resume."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float:
        """The value that holds for the step."""


class Constant(Schedule):
    """The same value throughout."""

    def __init__(self, value: float) -> None:
        """Store the settings.

        Args:
            value: What holds in every step.
        """
        self.value = value

    def __call__(self, progress: Progress) -> float:
        return self.value


class Ramp(Schedule, ABC):
    """From `start` to `end` over the run, in a shape of its own."""

    def __init__(self, start: float, end: float, until: float = 1.0) -> None:
        """Store the settings.

        Args:
            start: The value of the first step.
            end: The value from `until` on.
            until: The fraction of the run at which `end` is reached, above 0 to 1.
        """
        if not 0 < until <= 1:
            raise KDError(f"until must be a fraction of the run, above 0 to 1, not {until}")
        self.start, self.end, self.until = start, end, until

    def __call__(self, progress: Progress) -> float:
        if progress.total <= 0:
            raise KDError(
                f"{type(self).__name__} needs the length of the run: set trainer.max_steps, or use "
                "data of known length"
            )
        done = self.shape(min(1.0, progress.fraction / self.until))
        return self.start + (self.end - self.start) * done

    @abstractmethod
    def shape(self, done: float) -> float:
        """From 0 at 0 to 1 at 1."""


class Linear(Ramp):
    """From `start` to `end` in a straight line, then `end`."""

    def shape(self, done: float) -> float:
        return done


class Cosine(Ramp):
    """From `start` to `end` along half a cosine: slow, fast, slow."""

    def shape(self, done: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * done)
