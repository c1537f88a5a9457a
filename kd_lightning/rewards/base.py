"""The interface of every reward: a number for each answer, or nan where nobody can tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Generator, Kind
from kd_lightning.types import Batch, Example

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule


@dataclass(frozen=True)
class Around:
    """Who else is in the run."""

    teacher: Teacher | None = None
    """The run's teacher."""
    data: KDDataModule | None = None
    """The data module: it grades."""


@dataclass(frozen=True)
class Asked:
    """One answer that is to be judged."""

    row: int
    """Its row in the batch."""
    example: Example
    """What was asked, with the data's own answer."""
    answer: str
    """What was answered."""


class Reward(ABC):
    """A number for each answer of a batch; higher is better.

    nan: nobody could tell (a judge's answer that cannot be read, a server's failure). Such a row
    is counted in `logs` and never gets a number; `settle` takes its whole group out. What makes
    every further answer impossible (`GeneratorError`) is raised.
    """

    needs: Mapping[str, frozenset[Kind]] = {}
    """What it asks generators for, by the role they have: `judge`."""

    def __init__(self) -> None:
        self._around = Around()
        self._counts: Counter[str] = Counter()

    @property
    def parts(self) -> tuple[Reward, ...]:
        """Other rewards that it is made of."""
        return ()

    @abstractmethod
    def scores(self, batch: Batch, asked: Sequence[Asked]) -> Sequence[float] | Tensor:
        """A number for each answer, in order."""

    def __call__(self, batch: Batch, answers: Sequence[str]) -> Tensor:
        """Rewards `[B]` float32; nan where nobody could tell, and for fillers.

        Args:
            batch: Rows with their `examples`.
            answers: The texts of the answers beside the examples, row by row.
        """
        if len(answers) != len(batch.examples):
            raise KDError(
                f"{len(answers)} answers came to {len(batch.examples)} rows with an example: a "
                "reward needs the text of every row's answer"
            )
        pairs = zip(batch.examples, answers, strict=True)
        asked = [Asked(i, example, answer) for i, (example, answer) in enumerate(pairs)]
        device = batch.input_ids.device
        found = torch.full((len(batch),), math.nan, device=device)
        if asked:
            given = torch.as_tensor(self.scores(batch, asked), dtype=torch.float32, device=device)
            found[: len(asked)] = given.masked_fill(~given.isfinite(), math.nan)
        return found

    def check(self, around: Around) -> None:
        """Refuse at set-up what could only fail later; told who else is in the run."""
        self._around = around
        for part in self.parts:
            part.check(around)

    def materialize(self, device: torch.device) -> None:
        """Load, freeze and place what it has of its own; a second call does nothing."""
        for part in self.parts:
            part.materialize(device)

    def count(self, what: str, more: int = 1) -> None:
        """Add to a number of the log."""
        if more:
            self._counts[what] += more

    def logs(self) -> dict[str, float]:
        """What was counted since the last call: answers without a reward, by reason."""
        found = dict(self._own_counts())
        for part in self.parts:
            for name, value in part.logs().items():
                found[name] = found.get(name, 0.0) + value
        return found

    def _own_counts(self) -> Iterator[tuple[str, float]]:
        counts, self._counts = self._counts, Counter()
        yield from ((name, float(counts[name])) for name in sorted(counts))


def judges(reward: Reward | None) -> Iterator[Generator]:
    """The generators that a reward and its parts have for themselves."""
    if reward is not None:
        own = getattr(reward, "generator", None)
        if own is not None:
            yield own
        for part in reward.parts:
            yield from judges(part)


def speaker(own: Generator | None, around: Around, who: str) -> Generator:
    """Who judges: a generator of the reward's own, or the run's teacher."""
    if own is not None:
        return own
    if around.teacher is None:
        raise KDError(f"{who} needs somebody to ask: write {who}'s generator, or model.teacher")
    return around.teacher


def opened(own: Generator | None, device: torch.device) -> None:
    """Load or connect a generator of the reward's own."""
    if isinstance(own, Teacher):
        own.materialize(device)
    elif own is not None:
        own.open()


def told(example: Example) -> str:
    """What was asked as one text: the question, or all turns with their roles."""
    turns = example.prompt
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
