"""What a student learns from: one class for each skill and vertical, usable by its name."""

from kd_lightning.data.base import KDDataModule
from kd_lightning.discovery import import_submodules

__all__ = import_submodules(__name__, KDDataModule, globals())
