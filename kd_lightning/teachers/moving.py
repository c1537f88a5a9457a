"""The student's earlier self as its teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Completion, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MovingAverage(Teacher):
    r"""A mean of the student's former weights, or (decay 0) the student of some steps ago.

    .. math:: \theta_T \leftarrow d\, \theta_T + (1 - d)\, \theta_S

    A second copy of the student; what it has learned is in the checkpoint. Decay 1 is the student's
    start.

    Source: Tarvainen, Valpola 2017 (mean teacher), arXiv 1703.01780, section 3.
    """

    offers = frozenset({Signal.LOGITS, Signal.TEXT, Signal.LOGPROB})
    name = "a moving average of the student"

    def __init__(self, decay: float = 0.999, every: int = 1) -> None:
        """Store the settings.

        Args:
            decay: What stays of it at an update [d]; 0: it becomes the student.
            every: Optimizer steps between updates.
        """
        if not 0 <= decay <= 1:
            raise KDError(f"decay lies within 0 to 1, not {decay}")
        if every < 1:
            raise KDError(f"every must be at least 1, not {every}")
        self.decay = decay
        self.every = every
        self._student: CausalLM | None = None
        self._model: CausalLM | None = None

    @property
    def model(self) -> CausalLM:
        """The copy; `materialize` first."""
        assert self._model is not None, "call materialize before the first forward"
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self._student is None else self._student.tokenizer

    def attach(self, student: CausalLM) -> None:
        self._student = student
        self.packs = student.packs

    def materialize(self, device: torch.device) -> None:
        assert self._student is not None, "call attach first"
        if self._model is not None:
            return
        if self._student.placement is not None:
            other = "another teacher"
            if self.decay == 1:  # the start: there are others who are that, and are sharded
                other = (
                    "for the start LocalTeacher with the student's own path, or AdapterOff where "
                    "the student has adapters"
                )
            raise KDError(
                "MovingAverage keeps a whole copy of the student, and KDStrategy shards it: write "
                f"--trainer.strategy=ddp, or {other}"
            )
        made = copy.deepcopy(self._student).to(device)
        self._model = made.requires_grad_(False).eval()

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        with torch.no_grad():
            output: ModelOutput = self.model(batch)
            return output

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        return self.model.complete(prompts, sampling)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        if step % self.every:
            return
        for mine, learned in self._pairs():
            mine.lerp_(learned.to(mine), 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own, held = self._weights(), state.get("weights", {})
        if own.keys() != held.keys():
            raise KDError(
                "the checkpoint holds no moving average of this student: go on with the teacher "
                "that the run began with"
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(held[name])

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        assert self._student is not None
        mine = dict(self.model.named_parameters())
        return [(mine[n], p) for n, p in self._student.named_parameters() if p.requires_grad]

    def _weights(self) -> dict[str, Tensor]:
        """Those that follow the student's learned ones, by name."""
        assert self._student is not None
        learned = {n for n, p in self._student.named_parameters() if p.requires_grad}
        return {n: p.detach() for n, p in self.model.named_parameters() if n in learned}
