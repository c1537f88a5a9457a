"""Something that a step is built of and a configuration may choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_lightning.knowledge.step import plain
from kd_lightning.teachers.generator import Kind


class Part:
    """Constructors only store their arguments, each under its own name: they are the settings."""

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        """Names of the generators that it uses, each with what it asks them for."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What its results depend on, as JSON can hold it."""
        stored = {k: plain(v) for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": type(self).__name__, **stored}
