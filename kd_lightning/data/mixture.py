"""Several skills in one run, at chosen ratios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.groups import units
from kd_lightning.data.rows import Row
from kd_lightning.data.sampler import Order
from kd_lightning.data.summary import Summary
from kd_lightning.errors import KDError
from kd_lightning.types import Example


@dataclass
class Part:
    """One data module of a mixture."""

    data: KDDataModule
    """Where the part's rows come from; its own loader settings (batch size, seed) do not count."""
    ratio: float = 1.0
    """Its share of the training rows, relative to the other parts' ratios."""


@dataclass(frozen=True)
class Mixed:
    """The parts' rows interleaved evenly, so that each stretch of rows has nearly the ratios.

    A part is read in passes, each in an order of its own; where an epoch ends within a pass, the
    next epoch goes on there. So the order is a function of seed and epoch, a small part repeats
    and nothing of a large part is left out for ever.
    """

    sizes: tuple[int, ...]
    """Rows of each part; the parts stand one behind the other."""
    counts: tuple[int, ...]
    """Rows that each part gives to an epoch."""
    shuffle: bool

    def __call__(self, seed: int, epoch: int) -> NDArray[np.int64]:
        picks, places = [], []
        offset = 0
        for part, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            picks.append(offset + self._picks(seed, part, size, epoch * count, count))
            places.append((np.arange(count) + 0.5) / max(count, 1))
            offset += size
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.asarray(np.concatenate(picks)[order], np.int64)

    def _picks(self, seed: int, part: int, size: int, first: int, count: int) -> NDArray[np.int64]:
        """Rows `first` to `first + count` of the part's endless sequence of passes."""
        passes = range(first // size, (first + count - 1) // size + 1) if count else range(0)
        rows = [
            np.random.default_rng([seed, part, number]).permutation(size)
            if self.shuffle
            else np.arange(size)
            for number in passes
        ]
        start = first % size
        return np.concatenate([*rows, np.arange(0)])[start : start + count].astype(np.int64)


class Mixture(KDDataModule):
    """Parts by name; the names are the skills under which metrics are logged.

    An epoch has `epoch_rows` training rows, of which each part gives its share by ratio. Validation
    and test hold all rows of all parts. An answer is graded by the part that its example is from.
    """

    def __init__(
        self,
        parts: dict[str, Part],
        *,
        epoch_rows: int | None = None,
        tokenizer: str | None = None,
        batch_size: int = 8,
        batch_tokens: int | None = None,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Store the settings.

        Args:
            parts: Name to data module and ratio, for example
                `{math: {data: {class_path: Thinking, ...}, ratio: 2}}`.
            epoch_rows: Training rows (prompts, where answers are compared) of an epoch; None: as
                many as the parts have together.
            tokenizer: Folder or hub name of the tokenizer of all parts; None: the student's.
            batch_size: Rows of one rank in one optimizer step.
            batch_tokens: In place of it, tokens of one rank in one optimizer step.
            eval_batch_size: Rows of one rank in one evaluation batch; None: batch_size.
            shuffle: Whether each pass over a part has its own order.
            seed: Seed of the order.
            num_workers: Processes that collate batches in advance.
        """
        super().__init__(
            tokenizer=tokenizer,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            eval_batch_size=eval_batch_size,
            shuffle=shuffle,
            seed=seed,
            num_workers=num_workers,
        )
        self.parts = parts
        self.epoch_rows = epoch_rows
        if not parts:
            raise KDError("a mixture needs parts: set --data.parts.<name>.data=<class>")
        for name, part in parts.items():
            if part.ratio <= 0:
                raise KDError(f"part {name} has ratio {part.ratio}: it must be above 0")
            if isinstance(part.data, Mixture) or part.data.streaming:
                raise KDError(f"part {name} must be a single data module without streaming")
            if part.data.tokenizer_path is not None:
                raise KDError(f"part {name} has its own tokenizer: set it on the mixture instead")

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def part(self, example: Example) -> KDDataModule:
        """The data module that the example is from."""
        if example.skill not in self.parts:
            raise KDError(f"row {example.id} is of none of the parts {', '.join(self.parts)}")
        return self._bound(self.parts[example.skill].data)

    def rows(self, split: str) -> Iterable[Row]:
        for name, part in self.parts.items():
            for row in self._bound(part.data).placed(split):
                row.part = name
                yield row

    def render(self, row: Row) -> Example:
        return replace(self.parts[row.part].data.example(row), skill=row.part)

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        return self.part(example).grade(example, answer)

    def prompt_ids(self, example: Example) -> list[int]:
        return self.part(example).prompt_ids(example)

    def encode(self, example: Example) -> Encoded:
        return self.part(example).encode(example)

    def prepare_data(self) -> None:
        for part in self.parts.values():
            part.data.prepare_data()

    def train_order(self) -> tuple[Order, int]:
        self.encoded("train")
        sizes = [len(units(part.data.encoded("train"))) for part in self.parts.values()]
        ratios = np.array([part.ratio for part in self.parts.values()])
        total = self.epoch_rows or sum(sizes)
        ends = np.rint(np.cumsum(ratios / ratios.sum()) * total).astype(int)
        counts = np.diff(ends, prepend=0)
        return Mixed(tuple(sizes), tuple(int(n) for n in counts), self.shuffle), int(total)

    def _encode_split(self, split: str) -> list[Encoded]:
        rows: list[Encoded] = []
        parts: dict[str, Summary] = {}
        for name, part in self.parts.items():
            data = self._bound(part.data)
            if self.trainer is not None:
                data.bad.place(self.trainer.default_root_dir, self.trainer.global_rank, name)
            named: dict[int, Example] = {}
            for row in data.encoded(split):
                if id(row.example) not in named:
                    named[id(row.example)] = replace(row.example, skill=name)
                group = None if row.group is None else f"{name}/{row.group}"
                rows.append(replace(row, example=named[id(row.example)], group=group))
            parts[name] = data.summary[split]
        dropped: Counter[str] = Counter()
        for summary in parts.values():
            dropped.update(summary.dropped)
        truncated = sum(summary.truncated for summary in parts.values())
        self.summary[split] = replace(Summary.of(rows, truncated, dropped), parts=parts)
        return rows

    def _bound(self, data: KDDataModule) -> KDDataModule:
        """The part with the tokenizer of the mixture."""
        if data._tokenizer is not self.tokenizer:
            data.tokenizer = self.tokenizer
        return data
