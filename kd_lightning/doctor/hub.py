"""Check of the way to the hub, for runs that load something from there."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from kd_lightning.doctor.findings import Finding, ok, warning
from kd_lightning.doctor.patient import Patient, parts
from kd_lightning.models.loading import DEMO_TEACHER

SECONDS = 4.0
"""How long the hub may take to answer."""


def hub(patient: Patient) -> Iterator[Finding]:
    """Whether it answers; without it, nobody tries again and again for minutes."""
    names = wanted(patient)
    if not names:
        return
    told = ", ".join(names)
    if constants.HF_HUB_OFFLINE:
        yield ok(f"not asked (HF_HUB_OFFLINE is set); {told} must be in its cache here")
    elif reachable(constants.ENDPOINT):
        yield ok(f"{constants.ENDPOINT} answers; asked for {told}")
    else:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        yield warning(
            f"{constants.ENDPOINT} cannot be reached from here, so {told} must be in its cache "
            "here: write folders in place of names, or download them first (hf download NAME)"
        )


def wanted(patient: Patient) -> list[str]:
    """Names that are no files or folders here."""
    spec, teacher = patient.distiller.spec, patient.distiller.teacher
    names = [spec.path, spec.tokenizer, getattr(teacher, "path", None)]
    for part in parts(patient.data):
        names += [part.tokenizer_path, *part.splits.paths.values()]
    return list(dict.fromkeys(n for n in names if n and n != DEMO_TEACHER and _on_hub(n)))


def reachable(endpoint: str) -> bool:
    """Whether anything answers there (through a proxy, where one is configured)."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError:  # it answered
        return True
    except OSError:
        return False
    return True


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists()
