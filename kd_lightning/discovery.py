"""A file dropped into a package is known by its class names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any


def import_submodules(package: str, base: type, namespace: dict[str, Any]) -> list[str]:
    """Import every module beside `package`'s `__init__` and re-export its concrete `base` classes.

    A configuration may then say `ReverseKL`, and a saved one says `kd_lightning.losses.ReverseKL`
    wherever in the package the class stands.
    """
    path = importlib.import_module(package).__path__
    names: list[str] = []
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for name, value in vars(module).items():
            concrete = inspect.isclass(value) and issubclass(value, base)
            if concrete and not inspect.isabstract(value) and value.__module__ == module.__name__:
                namespace[name] = value
                names.append(name)
    return sorted(names)
