"""What a teacher gives to the loss, on paper: what of it stands on the device, and for how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kd_lightning.cache.hidden import Hidden
from kd_lightning.cache.topk import few
from kd_lightning.doctor.counting import Paper
from kd_lightning.doctor.paper import quantised, teacher_on_paper
from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.heads import LinearHead
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.teachers.own import AdapterOff
from kd_lightning.types import IGNORE, Batch, ModelOutput, SparseTargets


class Taught(ABC):
    """A teacher, as far as memory is concerned."""

    model: CausalLM | None = None
    """Weights that it has for itself."""
    saved: int = 0
    """Bytes that the real weights are smaller by (quantised ones)."""
    width: int = 0
    """Bytes of a counted token's states, which the loss copies."""

    @abstractmethod
    def __call__(self, batch: Batch, student: CausalLM) -> ModelOutput:
        """What the loss is given."""

    def weights(self) -> Iterable[Tensor]:
        """What stands on the device all the time."""
        return [] if self.model is None else [*self.model.parameters(), *self.model.buffers()]


class Whole(Taught):
    """A model in this process."""

    def __init__(self, model: CausalLM, saved: int = 0) -> None:
        self.model = model
        self.saved = saved
        head = model.transformer.get_output_embeddings().weight
        self.width = int(head.shape[1]) * head.element_size()

    def __call__(self, batch: Batch, student: CausalLM) -> ModelOutput:
        assert self.model is not None
        output: ModelOutput = self.model(batch)
        return output


class Shared(Taught):
    """The student's own weights."""

    def __call__(self, batch: Batch, student: CausalLM) -> ModelOutput:
        output: ModelOutput = student(batch)
        return output


class Few(Taught):
    """A cache of a few ids a token."""

    def __init__(self, ids: int, vocab: int, temperatures: Iterable[float], support: Any) -> None:
        self.ids, self.vocab, self.temperatures = ids, vocab, tuple(temperatures)
        self.support = support
        self.width = 16 * ids

    def __call__(self, batch: Batch, student: CausalLM) -> ModelOutput:
        number = int((batch.targets != IGNORE).sum())
        one = torch.zeros(number)
        ids = torch.arange(self.ids).expand(number, -1).contiguous()
        told = SparseTargets(
            ids=ids,
            logits=torch.zeros(number, self.ids),
            lse=dict.fromkeys(self.temperatures, one),
            label=one.clone(),
            entropy=one.clone(),
            vocab=self.vocab,
            support=self.support,
        )
        return few(told, batch)


class States(Taught):
    """A cache of hidden states, with the head beside it."""

    def __init__(self, width: int, vocab: int, paper: Paper) -> None:
        self._paper = paper
        linear = torch.nn.Linear(width, vocab, bias=False, device="meta", dtype=torch.bfloat16)
        paper.copy(linear.requires_grad_(False))
        self.head = LinearHead(linear, vocab, own_precision=True)
        self.units = width
        self.width = 2 * width

    def weights(self) -> Iterable[Tensor]:
        return self.head.linear.parameters()

    def __call__(self, batch: Batch, student: CausalLM) -> ModelOutput:
        rows, columns = batch.targets.shape
        states = self._paper.empty(rows, columns, self.units, dtype=torch.bfloat16)
        return ModelOutput(states, self.head)


def taught_by(
    teacher: Teacher | None,
    paper: Paper,
    temperatures: Iterable[float],
    again: Callable[[], CausalLM],
) -> Taught | None:
    """A teacher on paper; None where nobody asks one. `again`: another student on paper."""
    if teacher is None:
        return None
    if isinstance(teacher, LocalTeacher):
        model = teacher_on_paper(teacher, paper)
        return Whole(model, quantised(model, teacher.quantization))
    if isinstance(teacher, AdapterOff):
        return Shared()
    if isinstance(teacher, MovingAverage):
        return Whole(again().requires_grad_(False).eval())
    if isinstance(teacher, CachedTeacher):
        kind, manifest = teacher.reader.kind, teacher.reader.manifest
        if isinstance(kind, Hidden):
            return States(kind.width, manifest.vocab, paper)
        number = int(manifest.settings.get("k") or manifest.settings["draws"])
        support = "sampled" if manifest.kind == "sampled" else "tail"
        return Few(number, manifest.vocab, temperatures, support)
    raise KDError(f"what {type(teacher).__name__} takes of memory is not known here")
