"""One on-policy training beside TRL's: what is trained, and ours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks import stories
from kd_lightning.data.collate import Collate
from kd_lightning.losses.base import Loss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ReverseKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupConstant
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.types import Batch, Sampling


@dataclass(frozen=True)
class Job:
    """What every way trains."""

    teacher: str
    """Folder of the model that knows."""
    start: str
    """Folder of the student before."""
    folder: str
    """Where the student goes."""
    seed: int = 0
    beta: float = 1.0
    """1: reverse KL; between: the generalised Jensen-Shannon divergence with this teacher share."""
    rows: int = stories.ROWS
    steps: int = 50
    warm: int = 5
    """First steps that are not timed."""
    drawn: int = 128
    """The most tokens of an answer."""
    lr: float = 1e-3


@dataclass(frozen=True)
class Ran:
    """What came of it."""

    tokens: int
    """That were trained in the timed steps."""
    cpu: float
    """CPU seconds of the process in these steps."""
    wall: float
    student: str
    """Folder of the student after."""

    @classmethod
    def of(
        cls, clock: Sequence[tuple[float, float]], tokens: Sequence[int], warm: int, place: Path
    ) -> Ran:
        """From the clock at the end of each step, and each step's tokens."""
        assert len(clock) == len(tokens)
        cpu, wall = (b - a for a, b in zip(clock[warm - 1], clock[-1], strict=True))
        return cls(sum(tokens[warm:]), cpu, wall, str(place))


def documents(job: Job) -> list[tuple[str, list[int], int]]:
    """A story for each row of the run: the text that is given, all ids, how many of them are given.

    Only stories whose given ids are those of the given text, so that every way asks the same.
    """
    data = stories.Stories()
    data.tokenizer = stories.tokenizer(job.teacher)
    known = data.tokenizer
    found = []
    for row in data.encoded("train"):
        ids = row.ids.tolist()
        text = known.decode(ids[1 : stories.PROMPT + 1])
        if known(text)["input_ids"] == ids[: stories.PROMPT + 1]:
            found.append((text, ids, stories.PROMPT + 1))
    needed = job.rows * job.steps
    return [found[i % len(found)] for i in range(needed)]


class Given(LightningDataModule):
    """The rows in their order."""

    skills = ("stories",)

    def __init__(self, job: Job) -> None:
        """Encoded as our own data module does."""
        super().__init__()
        data = stories.Stories()
        data.tokenizer = stories.tokenizer(job.teacher)
        rows = {tuple(row.ids.tolist()): row for row in data.encoded("train")}
        given = [rows[tuple(ids)] for _, ids, _ in documents(job)]
        collate = Collate(0, {data.skills[0]: 0})
        size = job.rows
        self.batches = [collate(given[i : i + size]) for i in range(0, len(given), size)]

    def train_dataloader(self) -> DataLoader[Batch]:
        """A batch for each step."""
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Clock(Callback):
    """The clock at the end of each step, and its tokens."""

    def __init__(self) -> None:
        """Nothing has run."""
        self.times: list[tuple[float, float]] = []
        self.tokens: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """After the optimizer's step."""
        self.times.append((time.process_time(), time.perf_counter()))


class Counted(FromStudent):
    """Notes how many tokens it drew."""

    def __init__(self, tokens: list[int], **settings: Any) -> None:
        """`tokens`: where it notes them."""
        super().__init__(**settings)
        self.counts = tokens

    def __call__(self, *arguments: Any) -> Batch:
        """As `FromStudent`."""
        made = super().__call__(*arguments)
        self.counts.append(sum(len(answer.tokens) for answer in made.answers))
        return made


def ours(job: Job) -> Ran:
    """The Distiller, every row answered by the student."""
    clock = Clock()
    sampling = Sampling(max_new_tokens=job.drawn, temperature=1.0)
    loss: Loss = ReverseKL() if job.beta == 1 else JensenShannon(job.beta)
    made = stories.fit(
        StudentSpec(path=job.start),
        loss,
        stories.teacher(),
        job.seed,
        job.steps,
        job.lr,
        partial(WarmupConstant, warmup=0),
        Counted(clock.tokens, sampling=sampling, document_prompt=stories.PROMPT),
        [clock],
        Given(job),
    )
    place = Path(job.folder) / "student"
    made.save(place)
    return Ran.of(clock.times, clock.tokens, job.warm, place)
