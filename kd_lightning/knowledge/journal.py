"""Where steps look for the journal of what generators said."""

from kd_lightning.teachers.journal import Journal

__all__ = ["Journal"]
