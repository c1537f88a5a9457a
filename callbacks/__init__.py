"""What is watched and exported: one file per callback."""

from lightning.pytorch.callbacks import Callback

from kd_lightning.discovery import import_submodules

__all__ = import_submodules(__name__, Callback, globals())
