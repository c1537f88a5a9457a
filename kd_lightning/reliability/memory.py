"""Out of memory: what did not fit, and which knobs make it fit."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kd_lightning.types import Batch

SAID = ("out of memory", "can't allocate memory", "not enough memory")


class ExplainOutOfMemory(Callback):
    """Adds to an out-of-memory error: the batch, the largest tensors, three settings to change."""

    def __init__(self) -> None:
        self._batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batch = batch

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if is_out_of_memory(exception):
            exception.add_note(explanation(pl_module, self._batch))
        self._batch = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in SAID)


def explanation(module: LightningModule, batch: Batch | None) -> str:
    """What a person needs to know to make it fit."""
    rows = getattr(module, "micro_batch_rows", None)
    tokens = getattr(module, "micro_batch_tokens", None)
    what = "no batch was at work"
    if isinstance(batch, Batch):
        shape = tuple(batch.input_ids.shape)
        real = int(batch.attention_mask.sum().cpu())
        what = (
            f"batch of shape {shape[0]} x {shape[1]}, {real:,} tokens, "
            f"model.micro_batch_rows={rows}, model.micro_batch_tokens={tokens}"
        )
    largest = "; ".join(
        f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}: "
        f"{t.numel() * t.element_size() / 2**20:,.1f} MiB"
        for t in largest_tensors(3)
    )
    return (
        f"out of memory: {what}. Largest tensors: {largest}. Set a smaller "
        "--model.micro_batch_rows (the step stays the same), a smaller --data.max_length, or "
        "--model.student.gradient_checkpointing=true. The optimizer has not moved in this step."
    )


def largest_tensors(count: int) -> list[Tensor]:
    """The largest tensors alive, one for each storage."""
    found: dict[int, Tensor] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.numel():
            found.setdefault(thing.untyped_storage().data_ptr(), thing)
    each = sorted(found.values(), key=lambda t: t.numel() * t.element_size(), reverse=True)
    return each[:count]
