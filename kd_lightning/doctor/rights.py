"""Check of the licences: what is known of the rights to teacher, student and data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kd_lightning.doctor.findings import Finding, ok, warning
from kd_lightning.doctor.patient import Patient, parts
from kd_lightning.evaluation.card import licence_in, sources_of
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.teachers.rights import licence_of
from kd_lightning.teachers.server import ServerTeacher


def licences(patient: Patient) -> Iterator[Finding]:
    """What is known of the rights to teacher, student and data."""
    patient.distiller.answering.rights()  # refuses terms that forbid it
    stated: dict[str, str] = {}
    for callback in getattr(patient.trainer, "callbacks", []):
        stated |= getattr(callback, "licences", {})
    taught = patient.distiller.teacher
    teacher = getattr(taught, "path", None)
    if isinstance(taught, CachedTeacher):
        teacher = taught.reader.manifest.teacher["name"]
    origin = patient.distiller.spec.path
    found: dict[str, str | None] = {}
    if isinstance(taught, ServerTeacher):
        found[f"teacher {taught.name}"] = stated.get("teacher") or taught.licence
    elif teacher is not None:
        found[f"teacher {teacher}"] = stated.get("teacher") or _licence(teacher)
    if origin is not None:
        found[f"student {origin}"] = stated.get("student") or _licence(origin)
    read = any(part.splits.paths for part in parts(patient.data))
    if read:
        where = ", ".join(sources_of(patient.data))
        found[f"data {where}"] = stated.get("data") or licence_in(patient.sample.examples)
    missing = [what for what, licence in found.items() if licence is None]
    known = "; ".join(f"{what}: {licence}" for what, licence in found.items() if licence)
    if known:
        yield ok(known)
    if missing:
        yield warning(
            f"no licence is stated for {' or '.join(missing)}: read it, and write it to the "
            "ExportStudent callback's `licences` (teacher, student, data)"
        )
    if not found:
        yield ok("the rows are made here, and there is no teacher")


def _licence(model: str) -> str | None:
    """What a model's card here states; a folder that is gone is another check's finding."""
    gone = model.startswith((".", "/", "~")) and not Path(model).expanduser().exists()
    return None if gone else licence_of(model)
