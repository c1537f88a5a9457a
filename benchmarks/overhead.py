"""What Lightning, the default callbacks and the default logging cost over a bare loop.

`python -m benchmarks.overhead` trains the packaged demo teacher into a small student, in
alternating stretches in one process: steps of `Trainer.fit` with what `configs/callbacks` gives to
every run and all metrics logged every 10th step, and steps of a hand-written loop with a student,
an optimizer and a loader of its own. Milliseconds of CPU time a step.
"""

from __future__ import annotations

import tempfile
import time
from itertools import cycle
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from benchmarks.harness import Report, median, parser
from callbacks import DistillationProgress, RunCheckpoint, RunRecord, Throughput
from kd_lightning.application import quiet
from kd_lightning.distiller import Distiller
from kd_lightning.loggers import MetricsFile
from kd_lightning.losses import ForwardKL
from kd_lightning.losses.base import Loss
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers import LocalTeacher
from kd_lightning.types import Batch

STRETCH = {"full": 100, "tiny": 3}
"""Steps of one kind at a time."""

EVERY = 10
"""Steps between two logged ones, as configs/trainer has it."""

ROWS, LENGTH, IDS = 4, 32, 100


class SameRows(LightningDataModule):
    """A few batches of random ids, again and again: loading costs nothing."""

    skills = ("all",)

    def train_dataloader(self) -> DataLoader[Batch]:
        """A loader that gives its batches as they are."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(8):
            ids = torch.randint(4, IDS, (ROWS, LENGTH), generator=generator)
            ones, zero = torch.ones_like(ids), torch.zeros(ROWS, dtype=torch.long)
            targets = ids.roll(-1, 1)
            made.append(Batch(ids, ones, targets, ones.float(), zero, zero))
        return DataLoader([made[i % 8] for i in range(10_000)], batch_size=None)


class BareLoop:
    """The same step without a framework."""

    def __init__(self, spec: StudentSpec, teacher: LocalTeacher, loss: Loss) -> None:
        """A student of its own; the teacher is shared."""
        self.student: CausalLM = build_student(spec, teacher.tokenizer)
        self.teacher = teacher
        self.loss = loss
        self.optimizer = torch.optim.AdamW(self.student.parameters())
        self.batches = cycle(SameRows().train_dataloader())

    def run(self, steps: int) -> None:
        """Train."""
        loss = self.loss
        for _ in range(steps):
            batch = next(self.batches)
            teacher = self.teacher.forward(batch, loss.needs)
            counts = loss.count(batch)

            def then(student: Any, teacher: Any = teacher, batch: Batch = batch) -> Any:
                return loss.objective(student, teacher, batch, counts)[0]  # noqa: B023

            self.student(batch, then).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


class Alternate(Callback):
    """After each stretch of the trainer, one of the bare loop; notes the CPU seconds of both."""

    def __init__(self, bare: BareLoop, stretch: int) -> None:
        """Two lists of seconds a step."""
        self.bare = bare
        self.stretch = stretch
        self.seconds: dict[str, list[float]] = {"bare loop": [], "Distiller": []}
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a stretch."""
        if trainer.global_step % self.stretch:
            return
        trained = time.process_time() - self._start
        begun = time.process_time()
        self.bare.run(self.stretch)
        bare = time.process_time() - begun
        if trainer.global_step > self.stretch:  # the first warms up
            self.seconds["Distiller"].append(trained / self.stretch)
            self.seconds["bare loop"].append(bare / self.stretch)
        self._start = time.process_time()


def measure(stretch: int, stretches: int, folder: str) -> dict[str, list[float]]:
    """Seconds a step of either kind, stretch by stretch."""
    spec = StudentSpec(
        config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        tokenizer="demo",
    )
    teacher = LocalTeacher("demo")
    model = Distiller(spec, ForwardKL(), teacher)
    teacher.materialize(torch.device("cpu"))
    watch = Alternate(BareLoop(spec, teacher, ForwardKL()), stretch)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=stretch * (stretches + 1),
        limit_val_batches=0,
        log_every_n_steps=EVERY,
        logger=MetricsFile(folder),
        callbacks=[RunRecord(), DistillationProgress(), Throughput(), RunCheckpoint(), watch],
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(model, SameRows())
    return watch.seconds


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    asked = parser(__doc__).parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    stretch, stretches = STRETCH[asked.preset], 4 * asked.repeats
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(stretch, stretches, folder)
    report = Report(
        "overhead",
        f"Framework and default logging over a bare loop: CPU ms a step ({stretches} alternating "
        f"stretches of {stretch} steps)",
        preset=asked.preset,
    )
    middle = {name: 1000 * median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        rounds = " ".join(f"{1000 * value:.2f}" for value in values)
        report.row(way=name, ms=middle[name], rounds=rounds)
    pairs = zip(seconds["Distiller"], seconds["bare loop"], strict=True)
    more = 1000 * median([ours - bare for ours, bare in pairs])
    report.at_most("overhead a step, ms (median of the differences)", more, 1.0)
    bars = {"ours: Distiller, logged": middle["Distiller"], "bare loop": middle["bare loop"]}
    report.finish(asked.out, {"a step": bars}, "CPU milliseconds (less is better)")
    return report


if __name__ == "__main__":
    main()
