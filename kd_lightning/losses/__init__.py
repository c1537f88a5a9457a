"""What a step minimises: one file per idea, each class usable by its name in a configuration."""

from kd_lightning.discovery import import_submodules
from kd_lightning.losses.base import Loss

__all__ = import_submodules(__name__, Loss, globals())
