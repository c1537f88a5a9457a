"""What an answer is worth: one file per way to tell."""

from kd_lightning.discovery import import_submodules
from kd_lightning.rewards.base import Reward

__all__ = import_submodules(__name__, Reward, globals())
