"""Checkpoints in the run's folder, whatever the loggers."""

from __future__ import annotations

from kd_lightning.reliability.keeper import Keeper


class RunCheckpoint(Keeper):
    """The library's keeper of checkpoints, under the name that configurations use."""
