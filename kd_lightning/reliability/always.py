"""What guards every run."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback

from kd_lightning.reliability.memory import ExplainOutOfMemory
from kd_lightning.reliability.randomness import StepRandomness
from kd_lightning.reliability.stop import GracefulStop


def always() -> list[Callback]:
    """Callbacks of every Distiller; they come after those of the configuration."""
    return [StepRandomness(), ExplainOutOfMemory(), GracefulStop()]
