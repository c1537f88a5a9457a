"""What an answer is good at: one file for each skill."""

from kd_lightning.data.base import KDDataModule
from kd_lightning.discovery import import_submodules

__all__ = import_submodules(__name__, KDDataModule, globals())
