"""Checks of where the run stands: disk and memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd_lightning.doctor.findings import Finding, ok, problem, warning
from kd_lightning.doctor.knobs import knobs
from kd_lightning.doctor.machine import shown
from kd_lightning.doctor.patient import Patient
from kd_lightning.doctor.table import memory_table
from kd_lightning.errors import KDError
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.tracking import MARKERS


def existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    here = folder.expanduser().absolute()
    while not here.exists():
        here = here.parent
    return here


@contextmanager
def beside(folder: Path) -> Iterator[Path | None]:
    """A folder on the run's disk to try things in; None (the system's) where it cannot write."""
    here = existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=here, prefix=".doctor-"):
            pass
    except OSError:  # the check of the disk says so
        yield None
        return
    yield here


def disk(patient: Patient) -> Iterator[Finding]:
    """The run's folder can be written, and holds what the run will write."""
    folder = patient.folder
    here = existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=here, prefix=".doctor-"):
            pass
    except OSError as error:
        raise KDError(
            f"cannot write into {folder} ({error.strerror}): write another folder "
            "(--trainer.default_root_dir=<folder>)"
        ) from error
    holds = [name for name in MARKERS if (folder / name).exists()]
    if holds:
        yield warning(
            f"{folder} already holds a run: `fit` will refuse to begin another one there; write "
            "another --trainer.default_root_dir, or continue that run"
        )
    yield from _room(patient, here)


def _room(patient: Patient, here: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(here).free
    kept = [c for c in getattr(patient.trainer, "callbacks", []) if isinstance(c, Keeper)]
    each = patient.estimate.state
    # the latest, the best, and the one that is being written before an old one goes
    number = sum(c.keep_last + (c.keep_best if c.monitor else 0) + 1 for c in kept)
    needed = number * each + patient.estimate.student_parameters * 4
    told = f"{shown(free)} free in {here}, {number} checkpoints of {shown(each)} at most"
    if needed > free:
        yield problem(
            f"{told}, and the exported student: {shown(needed)} are needed: free some space, or "
            "write another --trainer.default_root_dir or a smaller keep_best"
        )
    elif needed > 0.8 * free:
        yield warning(f"{told}: nearly all of it")
    else:
        yield ok(told if kept else f"{shown(free)} free in {here}; no checkpoints are configured")


def memory(patient: Patient) -> Iterator[Finding]:
    """What a rank holds at the worst moment, against what it has."""
    found, machine = patient.estimate, patient.machine
    what = "GPU" if machine.device == "cuda" else "process"
    each = f"on each of {machine.ranks} {what}s" if machine.ranks > 1 else f"on one {what}"
    told = f"{shown(found.total)} {each} at the worst moment, with {found.shape} at once"
    table = memory_table(found, machine)
    if machine.memory is None:
        yield ok(f"{told}; name the device's memory to compare (--memory=80GiB)", table)
        return
    share = found.total / machine.memory
    if share <= 0.92:
        yield ok(f"{told}; fits into {shown(machine.memory)} ({share:.0%})", table)
        return
    helps = knobs(patient)
    if share <= 1:
        yield warning(f"{told}; only just fits into {shown(machine.memory)}", table, *helps)
    else:
        yield problem(f"{told}; does not fit into {shown(machine.memory)}", table, *helps)


def plan(patient: Patient) -> Iterator[Finding]:
    """The run in one line, and whether this machine is the one it is written for."""
    told, machine, data = patient.trainer, patient.machine, patient.data
    rows = data.batch_size * machine.ranks
    steps = f"{told.max_steps:,} steps" if told.max_steps > 0 else f"{told.max_epochs} epochs"
    teacher = patient.distiller.teacher
    who = f"taught by {teacher.name}" if teacher is not None else "without a teacher"
    spec = patient.distiller.spec
    student = spec.path or f"a new {(spec.config or {}).get('model_type', 'model')}"
    name = type(patient.distiller.loss).__name__
    yield ok(f"{student}, {who}, by {name}; {steps} of {rows} rows")
    if not machine.here:
        yield warning("written for GPUs, and there is none here: steps are tried on the processor")
