"""Whose words a step learns from: one file per way to come by them."""

from kd_lightning.discovery import import_submodules
from kd_lightning.rollouts.base import Rollout

__all__ = import_submodules(__name__, Rollout, globals())
