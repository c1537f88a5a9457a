"""Who knows: one file per kind of teacher."""

from kd_lightning.discovery import import_submodules
from kd_lightning.teachers.base import Teacher

__all__ = import_submodules(__name__, Teacher, globals())
