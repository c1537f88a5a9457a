"""Who knows: the interface of every teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import Generator, Reply, Request
from kd_lightning.types import Asking, Batch, Completion, ModelOutput, Sampling, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.models.causal import CausalLM


class Teacher(Generator):
    """A frozen source of knowledge.

    Not a `torch.nn.Module`: it lives outside the student's module tree, so that it is never saved,
    optimised, counted or put into training mode, and places itself in `materialize`.
    """

    packs: bool = True
    """Whether the padding of a batch costs it nothing."""

    spread: Callable[[CausalLM], None] | None = None
    """Set before `materialize` where models are sharded: spreads one over the processes, in place
    of moving it to a device."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its own tokenizer, or None where it speaks text only."""

    def attach(self, student: CausalLM) -> None:
        """Told who the student is, before `materialize`: for teachers that share its weights."""

    @abstractmethod
    def materialize(self, device: torch.device) -> None:
        """Load, freeze and place the weights; a second call does nothing."""

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        """The signals `needs` for every position of the batch, without gradients."""
        raise KDError(f"{type(self).__name__} has no forward pass: choose a teacher that has one")

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        raise KDError(f"{type(self).__name__} cannot generate: choose a teacher that can")

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One answer for each prompt (token ids of its own tokenizer)."""
        raise KDError(f"{type(self).__name__} cannot generate: choose a teacher that can")

    def follow(self, step: int) -> None:
        """Told after each optimizer step, with their number: for teachers that move."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it: plain data and tensors; of most, nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take `state_dict` back."""

    def check_data(self, data: Any) -> None:
        """Refuse a data module (set up) whose rows it knows nothing of; most know any text."""

    def check(self, loss: Asking) -> None:
        """Refuse at set-up what could only fail later."""
        missing = sorted(loss.needs - self.offers)
        if missing:
            raise KDError(
                f"{type(loss).__name__} needs {', '.join(missing)} of the teacher, and "
                f"{type(self).__name__} offers {', '.join(sorted(self.offers)) or 'nothing'}: "
                "choose another loss or teacher"
            )
