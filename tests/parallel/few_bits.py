"""Weights in 8 and 4 bits, in one process and in two: what each step loses, or who refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.models.spec import LoraSpec
from kd_lightning.parallel.whole import in_one_piece
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.own import AdapterOff
from tests.parallel import runs
from tests.tiny import save_model

STEPS = 6
HALF = 3

CASES: dict[str, tuple[str, str]] = {
    "teacher_int8": ("none", "int8"),
    "teacher_nf4": ("none", "nf4"),
    "qlora": ("nf4", "none"),
    "qlora_teacher_nf4": ("nf4", "nf4"),
    "qlora_own": ("nf4", "own"),
    "lora_int8": ("int8", "none"),
    "lora_int8_own": ("int8", "own"),
}
"""Bits of the student's frozen weights and of the teacher's; own: the student without adapters."""

FAST = ("teacher_int8", "qlora_own")


def wide(folder: Path) -> Path:
    """A model whose rows are multiples of 64, the block of 4 bits."""
    if not (folder / "wide").exists():
        save_model(folder / "wide", width=64, tie_word_embeddings=False)
    return folder / "wide"


@contextmanager
def float32() -> Iterator[None]:
    """4-bit weights are multiplied in float32.

    Usually in bfloat16, where a last place of float32 is now and then rounded to the other side.
    """
    original = loading.quantization

    def exact(kind: str) -> Any:
        found = original(kind)
        if kind == "nf4":
            found.bnb_4bit_compute_dtype = torch.float32
        return found

    loading.quantization = exact
    try:
        yield
    finally:
        loading.quantization = original


def run(
    folder: Path, case: str, how: str, devices: int = 1, steps: int = STEPS, first: int = 0,
    start: str | None = None, save: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Losses of a few steps, or the sentence that refuses them.

    Micro-batches are the shares of two processes: bitsandbytes chooses the columns that it keeps in
    full by all rows of a product, and scales by them.
    """
    of_student, of_teacher = CASES[case]
    path = str(folder / "wide")
    told: Any = AdapterOff()
    if of_teacher != "own":
        told = LocalTeacher(path, quantization=of_teacher, quantization_limit=None)
    model = runs.distiller(
        path, "both", lora=None if of_student == "none" else LoraSpec(rank=4), told=told,
        gradient_clip_norm=0.5, micro_batch_rows=runs.ROWS // 2,
    )  # fmt: skip
    model.spec = replace(model.spec, quantization=of_student)
    seen = runs.Losses(model)
    fit = runs.trainer(folder, first + steps, devices=devices, strategy=runs.strategy(how))
    try:
        fit.fit(model, runs.Batches(first, steps), ckpt_path=start)
    except KDError as error:
        return {"refused": str(error)}
    if save is not None:
        fit.save_checkpoint(save)
    whole = in_one_piece(model.student, model.spec)
    kinds = None if whole is None else sorted({str(p.dtype) for p in whole.parameters()})
    frozen = [p for p in model.student.parameters() if not p.is_floating_point()]
    return {"losses": seen.values, "whole": kinds, "frozen": sum(p.numel() for p in frozen)}


def every(folder: Path, cases: tuple[str, ...] = tuple(CASES)) -> dict[str, Any]:
    """By sharding and by DDP, in two processes."""
    with float32():
        return {
            f"{case}-{how}": run(folder, case, how, devices=2)
            for how in ("fsdp", "ddp")
            for case in cases
        }


def fast(folder: Path) -> dict[str, Any]:
    """A few of them."""
    return every(folder, FAST)


def further(folder: Path) -> dict[str, Any]:
    """As it is used (bfloat16), and cut in the middle."""
    found = {"bfloat16": run(folder, "qlora", "fsdp", devices=2)}
    for how in ("fsdp", "ddp"):
        save = str(folder / f"qlora-{how}.ckpt")
        run(folder, "qlora", how, devices=2, steps=HALF, save=save)
        found[f"second-{how}"] = run(
            folder, "qlora", how, devices=2, steps=STEPS - HALF, first=HALF, start=save
        )
        found[f"whole-{how}"] = run(folder, "qlora", how, devices=2)
    return found
