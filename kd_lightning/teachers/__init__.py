"""Who knows and who speaks: one file per kind of teacher and of generator."""

from kd_lightning.discovery import import_submodules
from kd_lightning.teachers.generator import Generator

__all__ = import_submodules(__name__, Generator, globals())
