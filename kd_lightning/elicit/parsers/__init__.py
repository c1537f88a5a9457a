"""From what a generator wrote to named values: one file per kind of answer."""

from kd_lightning.discovery import import_submodules
from kd_lightning.elicit.parsers.base import Malformed, Parser

__all__ = ["Malformed", "Parser", *import_submodules(__name__, Parser, globals())]
