"""What to turn when it does not fit, each with what it would come to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from kd_lightning.doctor import memory
from kd_lightning.doctor import parts as parts_of
from kd_lightning.doctor.counting import Paper
from kd_lightning.doctor.machine import shown
from kd_lightning.doctor.paper import quantised, teacher_on_paper
from kd_lightning.models.spec import LoraSpec
from kd_lightning.teachers.local import LocalTeacher

if TYPE_CHECKING:
    from kd_lightning.doctor.patient import Patient


def knobs(patient: Patient) -> list[Text]:
    """The settings that save the most, best first: `setting: 12.3 GiB (-4.5 GiB)`."""
    limit = patient.machine.memory
    assert limit is not None
    found = sorted(tried(patient).items(), key=lambda pair: pair[1])
    now = patient.estimate.total
    lines = []
    for setting, total in found:
        if total < 0.98 * now:
            style = "green" if total <= 0.92 * limit else "dim"
            lines.append(Text(f"{setting}: {shown(total)} ({shown(total - now)})", style=style))
    return lines[:6]


def tried(patient: Patient) -> dict[str, int]:
    """Setting to the memory with it alone."""
    found: dict[str, int] = {}
    estimate, machine = patient.estimate, patient.machine
    parts, total = estimate.parts, estimate.total
    distiller, spec, shape = patient.distiller, patient.distiller.spec, estimate.shape
    if not spec.gradient_checkpointing:
        other = memory.smaller(distiller, gradient_checkpointing=True)
        made = memory.estimate(other, shape, machine, patient.known_tokenizer)
        found["--model.student.gradient_checkpointing=true"] = made.total
    if shape.rows > 1:
        half = replace(shape, rows=-(-shape.rows // 2), pieces=2 * shape.pieces)
        saved = (
            sum(parts.get(n, 0) for n in (parts_of.ACTIVATIONS, parts_of.TEACHER_ACTIVATIONS)) // 2
        )
        more = 0 if shape.pieces > 1 else estimate.trained
        found[f"--model.micro_batch_tokens={half.tokens}"] = total - saved + more
    if machine.ranks > 1 and machine.shards == 1:
        sharded = replace(machine, shards=machine.ranks)
        made = memory.estimate(distiller, shape, sharded, patient.known_tokenizer)
        found[f"--trainer=configs/trainer/fsdp.yaml ({machine.ranks} GPUs)"] = made.total
    teacher = distiller.teacher
    weights = parts.get(parts_of.TEACHER, 0)
    if isinstance(teacher, LocalTeacher) and weights:
        if teacher.quantization == "none" and machine.device == "cuda" and machine.shards == 1:
            saved = quantised(teacher_on_paper(teacher, Paper()), "nf4")
            found["--model.teacher.quantization=nf4"] = total - saved
        gone = sum(parts.get(name, 0) for name in (parts_of.TEACHER, parts_of.TEACHER_ACTIVATIONS))
        found["a cached teacher (`kd cache`)"] = total - gone
    if spec.lora is None and spec.path is not None:
        other = memory.smaller(distiller, lora=LoraSpec())
        made = memory.estimate(other, shape, machine, patient.known_tokenizer)
        found["--model.student.lora.rank=16"] = made.total
    return found
