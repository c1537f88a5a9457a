"""Encoded rows to batches in a resumable order: the loaders of every data module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning import LightningDataModule

from kd_lightning.data.budget import TokenBudget
from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.facts import compare_facts, facts
from kd_lightning.data.groups import units
from kd_lightning.data.loader import ResumableLoader, make_loader
from kd_lightning.data.sampler import GlobalSampler, InOrder, Order, Shuffled
from kd_lightning.data.stream import StreamLoader
from kd_lightning.types import Batch

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase


class Serving(LightningDataModule):
    """Serves what a data module has encoded.

    What is dealt out is a unit: a row, or all rows of a group (answers to one prompt), which stay
    together in a batch and on a rank. `batch_size` counts units.
    """

    streaming: bool
    batch_size: int
    batch_tokens: int | None
    eval_batch_size: int
    shuffle: bool
    seed: int
    num_workers: int
    limits: Mapping[str, int | None]
    _rows: dict[str, list[Encoded]]
    _facts: dict[str, Any]
    _training: ResumableLoader | None
    _position: dict[str, int] | None

    @property
    @abstractmethod
    def skills(self) -> tuple[str, ...]:
        """Names under which metrics are logged; `Batch.skill` counts in them."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the rows."""

    @abstractmethod
    def _stream(self) -> StreamLoader:
        """Batches of a stream."""

    @abstractmethod
    def encoded(self, split: str) -> list[Encoded]:
        """The encoded rows of a split."""

    # What a checkpoint remembers

    def state_dict(self) -> dict[str, Any]:
        """What the training rows are, and where the run stands in them."""
        if "train" in self._rows and not self._facts:
            a_step = (self.batch_tokens or self.batch_size) * self._ranks()[1]
            self._facts = facts(self._rows["train"], a_step, self.seed)
        state = dict(self._facts)
        if self._training is not None:
            state["position"] = self._training.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there; refuse other rows, and another number of rows in a step."""
        compare_facts(state_dict, self.state_dict(), getattr(self.trainer, "start", None))
        self._position = state_dict.get("position")
        if self._training is not None and self._position is not None:
            self._training.load_state_dict(self._position)

    def _at_position(self, loader: ResumableLoader) -> ResumableLoader:
        """The loader of a run. Lightning restores only a loader that is made after it has looked
        into the checkpoint, and makes it before where the schedule asks for the run's length.
        """
        self._training, position, self._position = loader, self._position, None
        if position is not None:
            loader.load_state_dict(position)
        return loader

    # Loaders

    def train_order(self) -> tuple[Order, int]:
        """The order of an epoch's units, and how many they are."""
        count = len(units(self.encoded("train")))
        return (Shuffled(count) if self.shuffle else InOrder(count)), count

    def train_dataloader(self) -> ResumableLoader | StreamLoader | DataLoader[Batch]:
        """Batches for training; their position is saved in checkpoints."""
        if self.streaming:
            return self._at_position(self._stream())
        if getattr(self.trainer, "overfit_batches", 0):
            return self._eval_loader("train")
        order, total = self.train_order()
        if self.batch_tokens is None:
            sampler = self._sampler(order, total, self.batch_size)
        else:
            rows = self.encoded("train")
            taken = [sum(len(rows[i]) - 1 for i in unit) for unit in units(rows)]
            lengths = np.array(taken)
            rank, world = self._ranks()
            sampler = TokenBudget(order, lengths, self.batch_tokens, rank, world, self.seed)
        return self._at_position(ResumableLoader(self._loader("train", sampler), sampler))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches for validation, in order."""
        return self._eval_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches for the test, in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test batches."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader[Batch]:
        total = len(units(self.encoded(split)))
        size = self.batch_size if split == "train" else self.eval_batch_size
        return self._loader(split, self._sampler(InOrder(total), total, size))

    def _loader(self, split: str, sampler: GlobalSampler) -> DataLoader[Batch]:
        return make_loader(self.encoded(split), sampler, self.collate(), **self._settings())

    def collate(self) -> Collate:
        """Makes batches of encoded rows."""
        tokenizer = self.tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad = next(int(value) for value in candidates if value is not None)
        return Collate(pad, {skill: i for i, skill in enumerate(self.skills)})

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _sampler(self, order: Order, total: int, batch_size: int) -> GlobalSampler:
        rank, world = self._ranks()
        return GlobalSampler(order, total, batch_size, rank, world, self.seed)

    def _settings(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": on_gpu,
        }
