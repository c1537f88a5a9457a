"""A share that rises when validation says that the student gets worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.schedules import Schedule
from kd_lightning.types import Progress


class OnValidation(Schedule):
    """More of the student's own words when the loss of the validation rises.

    Where a validation's loss is at least the former one's plus `margin`, the value rises by `by`,
    up to 1. In the checkpoint.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.2 (adaptive use of the student's
    answers).
    """

    def __init__(self, start: float = 0.0, by: float = 0.1, margin: float = 0.1) -> None:
        """Store the settings.

        Args:
            start: The value until the loss rises.
            by: By how much the value rises.
            margin: What the loss has to rise by.
        """
        if not 0 <= start <= 1 or by < 0:
            raise KDError(f"start lies within 0 to 1 and by is at least 0, not {start} and {by}")
        self.start = start
        self.by = by
        self.margin = margin
        self._value = start
        self._last: float | None = None

    def __call__(self, progress: Progress) -> float:
        return self._value

    def observe(self, loss: float) -> None:
        """The loss of a validation."""
        if self._last is not None and loss >= self._last + self.margin:
            self._value = min(1.0, self._value + self.by)
        self._last = loss

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self._value, "last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take `state` back."""
        self._value, self._last = state["value"], state["last"]
