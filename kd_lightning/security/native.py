"""Native code comes with what was installed, and is never fetched."""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.util import find_spec
from typing import Any

SWITCH = "USE_HUB_KERNELS"
"""Environment variable by which transformers fetches kernels of the hub for some layers, unasked,
where the package `kernels` is installed; `kd_lightning` sets it to NO unless it is set."""


def import_bitsandbytes() -> None:
    """Import it, if it is installed, as on a machine without the package `kernels`.

    With that package, its import on a processor with AVX512-BF16 fetches a kernel from the hub, and
    runs it. Whoever imports it first decides, so this comes before peft and quantised models.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    log = logging.getLogger("bitsandbytes")
    level, modules = log.level, sys.modules
    absent = object()
    before: Any = modules.get("kernels", absent)
    modules["kernels"] = None  # type: ignore[assignment] # an import of it fails
    log.setLevel(logging.ERROR)  # it would say that this kernel is missing
    try:
        importlib.import_module("bitsandbytes")
    finally:
        log.setLevel(level)
        if before is absent:
            del modules["kernels"]
        else:
            modules["kernels"] = before
    # at every product of 8 bits: that it rounds to float16 first
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
