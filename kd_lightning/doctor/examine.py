"""What `kd doctor` does: every check once, whatever the others say."""

from __future__ import annotations

import time

from rich.console import Console

from kd_lightning.doctor import hub, inputs, limits, place, rights, running, served
from kd_lightning.doctor.findings import Check, Checked, MissingError, problem, skipped
from kd_lightning.doctor.machine import shown
from kd_lightning.doctor.patient import Patient, refusal
from kd_lightning.doctor.report import Report
from kd_lightning.doctor.trial import Trial
from kd_lightning.errors import KDError

CHECKS: dict[str, Check] = {
    "run": place.plan,
    "hub": hub.hub,
    "files": inputs.files,
    "tokenizers": inputs.tokenizers,
    "template": inputs.template,
    "lengths": limits.lengths,
    "licence": rights.licences,
    "loss": inputs.needs,
    "server": served.served,
    "attention": running.attention,
    "memory": place.memory,
    "disk": place.disk,
    "student": running.student,
    "teacher": running.teacher,
    "step": running.step,
    "checkpoint": running.checkpoint,
}
"""By name, in the order in which they are made: what is cheap first."""


def examine(patient: Patient, console: Console | None = None) -> Report:
    """Make every check and print what it finds."""
    report = Report(console)
    began = time.monotonic()
    for name, check in CHECKS.items():
        report.add(make(name, check, patient))
    report.close(report.verdict(time.monotonic() - began, outlook(patient), start()))
    return report


def make(name: str, check: Check, patient: Patient) -> Checked:
    """One check; whatever it raises is one of its findings."""
    done = Checked(name)
    began = time.monotonic()
    try:
        for finding in check(patient):
            done.findings.append(finding)
    except MissingError as error:
        done.findings.append(skipped(f"not looked at: {refusal(error)}"))
    except KDError as error:
        done.findings.append(problem(refusal(error)))
    except Exception as error:  # a check that breaks is a finding too, not the end of the others
        text = (str(error).strip().splitlines() or [""])[0]
        done.findings.append(problem(f"{type(error).__name__}: {text}"))
    done.seconds = time.monotonic() - began
    return done


def outlook(patient: Patient) -> str:
    """How long the run takes at the speed of the trial, and what it holds."""
    told = []
    trial = patient.known("trial step")
    if isinstance(trial, Trial):
        steps = patient.steps
        per_row = trial.seconds / max(1, trial.rows)
        seconds = steps * per_row * patient.data.batch_size
        if steps:
            told.append(f"about {duration(seconds)} for {steps:,} steps on this device")
    estimate = patient.known("memory estimate")
    if estimate is not None:
        told.append(f"{shown(estimate.total)} of memory")
    return "Expect " + " and ".join(told) + "." if told else "No step was tried."


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def start() -> str:
    """The command that begins the run: this one, with `fit` in place of `doctor`."""
    import sys

    from kd_lightning.tracking import command_line

    ours = ("--gpus", "--memory")
    kept, skip = [], False
    for argument in sys.argv:
        if skip or argument.startswith(tuple(f"{name}=" for name in ours)):
            skip = False
        elif argument in ours:
            skip = True
        else:
            kept.append("fit" if argument == "doctor" else argument)
    return f"Start it: {command_line(kept)}"
