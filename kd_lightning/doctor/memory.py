"""Memory before it is spent: the real step of the real models, counted without contents."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from kd_lightning.doctor.counting import Meter, Paper
from kd_lightning.doctor.drawn import at_its_most, cache_bytes
from kd_lightning.doctor.machine import Machine
from kd_lightning.doctor.paper import (
    BITS,
    loss_as_on,
    of_few_bits,
    quantised,
    size,
    student_config,
    student_on_paper,
)
from kd_lightning.doctor.parts import (
    ACTIVATIONS,
    GRADIENTS,
    LOSS,
    OF_THE_STEP,
    OPTIMIZER,
    REST,
    ROLLOUTS,
    TEACHER,
    TEACHER_ACTIVATIONS,
    WEIGHTS,
    spread,
)
from kd_lightning.doctor.taught import Taught, taught_by
from kd_lightning.losses.chunks import FUSED_TILES, chunk_rows
from kd_lightning.models import loading
from kd_lightning.models.causal import CausalLM
from kd_lightning.types import IGNORE, Batch, ModelOutput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.distiller import Distiller

CONTEXT = 2**30
"""What CUDA, its libraries and gaps between tensors take beside tensors: an assumption."""


@dataclass(frozen=True)
class Shape:
    """What is on the device at once."""

    rows: int
    columns: int
    """Tokens of the longest row."""
    pieces: int = 1
    """Micro-batches of a step."""

    @property
    def tokens(self) -> int:
        """Of a full micro-batch."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns:,} tokens"

    @classmethod
    def of(cls, distiller: Distiller, batch_size: int, longest: int) -> Shape:
        """The largest micro-batch that a configuration can make of rows of this length."""
        columns = max(1, longest - 1)  # the last token is a target only
        rows = batch_size
        if distiller.micro_batch_rows is not None:
            rows = min(rows, distiller.micro_batch_rows)
        if distiller.micro_batch_tokens is not None:
            rows = min(rows, max(1, distiller.micro_batch_tokens // columns))
        return cls(rows, columns, -(-batch_size // rows))


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank at the moment that needs the most."""

    parts: dict[str, int]
    """What for."""
    shape: Shape
    trained: int
    """Bytes of the trained weights."""
    state: int
    """Bytes of a checkpoint: trained weights and the optimizer's state, of all ranks."""
    weights: int
    """Bytes of all weights, of student and teacher together."""
    student_parameters: int
    teacher_parameters: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


def estimate(
    distiller: Distiller,
    shape: Shape,
    machine: Machine,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Estimate:
    """Count a step on paper, with all that a step in the middle of a run finds there.

    Attention is counted as without a mask: rows are full, so nothing is padded.
    """
    paper = Paper()
    spec = distiller.spec
    config = student_config(spec, tokenizer)
    wide = loading.weights_dtype(config, spec.dtype) == torch.float32 and machine.gathers_half
    if wide:  # what computes are bfloat16 copies, of which no rank has more than a few layers
        spec = replace(spec, dtype="bfloat16")
    student = student_on_paper(spec, tokenizer, paper)
    loss = distiller.loss
    asked = distiller.teacher if loss.needs else None
    again = partial(student_on_paper, distiller.spec, tokenizer, paper)
    teacher = taught_by(asked, paper, loss.temperatures, again)
    meter = Meter(granule=512 if machine.device == "cuda" else 1)
    with loss_as_on(machine.device):
        parts = count(distiller, student, teacher, shape, machine, meter)
    if wide:
        for name in (WEIGHTS, GRADIENTS, OPTIMIZER):
            parts[name] *= 2
    own = None
    parts[WEIGHTS] -= quantised(student, spec.quantization, wide)
    if teacher is not None:
        parts[TEACHER] -= teacher.saved
        own = teacher.model
    trained = size(p for p in student.parameters() if p.requires_grad) * (1 + wide)
    weights = parts[WEIGHTS] + parts[TEACHER]
    state = trained + parts[OPTIMIZER]
    rounded = of_few_bits(student, spec.quantization)
    whole = {WEIGHTS: round(sum(w.numel() for w in rounded) * BITS.get(spec.quantization, 0.0))}
    if teacher is not None and teacher.saved:  # a quantised teacher is not split
        whole[TEACHER] = parts[TEACHER]
    split = (student, None if TEACHER in whole else own)
    spread(parts, machine, split, trained, whole, rounded)
    drawn = cache_bytes(distiller, student, shape.rows * shape.pieces, shape.columns)
    at_its_most(parts, drawn, ROLLOUTS, OF_THE_STEP)
    if machine.device == "cuda":
        parts[REST] += CONTEXT
    return Estimate(
        parts={name: size for name, size in parts.items() if size > 0},
        shape=shape,
        trained=trained,
        state=state,
        weights=weights,
        student_parameters=student.parameter_count,
        teacher_parameters=0 if own is None else own.parameter_count,
    )


def count(
    distiller: Distiller,
    student: CausalLM,
    teacher: Taught | None,
    shape: Shape,
    machine: Machine,
    meter: Meter,
) -> Counter[str]:
    """The most that a step holds at once, by what for; models real or on paper."""
    loss = copy.deepcopy(distiller.loss)
    trained = [p for p in [*student.parameters(), *loss.parameters()] if p.requires_grad]
    optimizer: Any = distiller.make_optimizer(trained)
    if machine.device == "cuda":
        for group in optimizer.param_groups:  # torch's choice for GPUs
            if not group.get("fused") and group.get("foreach") is None and "foreach" in group:
                group["foreach"] = True
    meter.hold([*student.parameters(), *student.buffers(), *loss.parameters()], WEIGHTS)
    if teacher is not None:
        meter.hold(teacher.weights(), TEACHER)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    with meter, meter.counting(OPTIMIZER):  # makes its state
        optimizer.step()
    if shape.pieces == 1:
        optimizer.zero_grad()
    else:
        meter.hold([p.grad for p in trained if p.grad is not None], GRADIENTS)

    def note(parameter: torch.Tensor) -> None:
        meter.hold(_gradient(parameter), GRADIENTS)

    hooks = [
        p.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
        for p in trained
    ]
    rows = _rows(student)
    counted = min(shape.tokens, 2 * chunk_rows(rows, FUSED_TILES, torch.device("cpu")))
    batch = full_batch(shape, rows, counted)
    meter.hold([x for x in vars(batch).values() if isinstance(x, torch.Tensor)], ACTIVATIONS)
    meter.forget_peak()
    with meter:
        with autocast(machine):
            objective = _objective(loss, student, teacher, batch, meter)
            with meter.counting(ACTIVATIONS):
                objective.backward()  # type: ignore[no-untyped-call]
        del objective
        with meter.counting(OPTIMIZER):
            if distiller.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, distiller.gradient_clip_norm)
            optimizer.step()
    for hook in hooks:
        hook.remove()
    if meter.peak[LOSS] and counted < shape.tokens:
        meter.peak[LOSS] += (shape.tokens - counted) * _for_a_token(student, teacher)
    return meter.peak


def _objective(
    loss: Any, student: CausalLM, teacher: Taught | None, batch: Batch, meter: Meter
) -> torch.Tensor:
    """Teacher, student and loss, each under its own name."""
    taught: ModelOutput | None = None
    if teacher is not None and loss.needs:
        with torch.no_grad(), meter.counting(TEACHER_ACTIVATIONS):
            taught = teacher(batch, student)

    def then(output: ModelOutput) -> torch.Tensor:
        with meter.counting(LOSS):
            made: torch.Tensor = loss.objective(output, taught, batch, loss.count(batch))[0]
            return made

    with meter.counting(ACTIVATIONS):
        whole: torch.Tensor = student(batch, then)
        return whole


def _for_a_token(student: CausalLM, teacher: Taught | None) -> int:
    """Bytes of the fused loss that grow with its tokens: states, and their gradient in float32.

    Chunks make up for nearly all time and are all alike, so only two of them are counted.
    """
    width = int(student.transformer.get_output_embeddings().weight.shape[1])
    return width * (4 + 4) + (0 if teacher is None else teacher.width)


def full_batch(shape: Shape, vocab: int, counted: int) -> Batch:
    """Rows without padding, of which the first tokens count in the loss."""
    ids = torch.arange(shape.tokens) % vocab
    targets = ids.clone()
    targets[counted:] = IGNORE
    table = (shape.rows, shape.columns)
    each = torch.zeros(shape.rows, dtype=torch.long)
    return Batch(
        input_ids=ids.view(table),
        attention_mask=torch.ones(table, dtype=torch.long),
        targets=targets.view(table),
        weights=(targets != IGNORE).float().view(table),
        source=each,
        skill=each.clone(),
        group=torch.arange(shape.rows) // 2,
        reward=torch.arange(shape.rows).float(),
    )


def autocast(machine: Machine) -> AbstractContextManager[Any]:
    """Mixed precision as the trainer has it."""
    return nullcontext() if machine.half is None else torch.autocast("cpu", machine.half)


def smaller(distiller: Distiller, **changes: Any) -> Distiller:
    """The same distillation with other settings of its student."""
    other = copy.copy(distiller)
    other.spec = replace(distiller.spec, **changes)
    return other


def _gradient(parameter: torch.Tensor) -> list[torch.Tensor]:
    return [] if parameter.grad is None else [parameter.grad]


def _rows(model: CausalLM) -> int:
    return int(model.transformer.get_output_embeddings().weight.shape[0])
