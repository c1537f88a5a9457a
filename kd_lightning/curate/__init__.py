"""Records in, records out, and why the others fell: one file per family of curators."""

from kd_lightning.discovery import import_submodules
from kd_lightning.knowledge.step import Step

__all__ = import_submodules(__name__, Step, globals())
