"""What an answer is about: one file for each domain."""

from kd_lightning.data.base import KDDataModule
from kd_lightning.discovery import import_submodules

__all__ = import_submodules(__name__, KDDataModule, globals())
