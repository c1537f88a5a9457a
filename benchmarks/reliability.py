"""What the guards and safe saving cost: share of a cycle of steps and one save.

`python -m benchmarks.reliability [--every 100] [--width 256]` measures, in one process and in turn:
a training step; the guards of a step (seeding, the finite check, signals); a checkpoint written by
plain `torch.save`, by the same and fsync, by the commit protocol (checksum, fsync, manifest,
rename), by this without the checksum, and in the background, where training waits for the copy
only. The figures are

    (every x guards + safe save - plain save) / (every x step + plain save)
    (safe save - the same without checksums) / safe save
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.application import quiet
from kd_lightning.data.skills import Demo
from kd_lightning.distiller import Distiller
from kd_lightning.files import checksum, to_disk
from kd_lightning.losses import ForwardKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.reliability import checkpoint_io
from kd_lightning.reliability.checkpoint_io import VerifiedIO
from kd_lightning.reliability.finite import FiniteGuard, NotFinite
from kd_lightning.reliability.randomness import seed_step
from kd_lightning.teachers import LocalTeacher

REPEATS = 21


class Unsummed:
    """In place of a checksum: nothing is read."""

    def update(self, data: Any) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """A value of the usual length."""
        return "0" * 32


@contextmanager
def unsummed() -> Iterator[None]:
    """Checkpoints are written as ever, without their checksums."""
    original = checkpoint_io.checksum
    checkpoint_io.checksum = Unsummed
    try:
        yield
    finally:
        checkpoint_io.checksum = original


class Clock(Callback):
    """Seconds of each step, and the state after the last one."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.seconds: list[float] = []
        self.state: dict[str, Any] = {}
        self.last: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The step begins."""
        self.last = batch
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step ends."""
        self.seconds.append(time.perf_counter() - self._since)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a checkpoint would hold."""
        optimizer = trainer.optimizers[0].state_dict()
        self.state = {
            "global_step": trainer.global_step,
            "state_dict": {k: v.clone() for k, v in pl_module.state_dict().items()},
            "optimizer_states": [optimizer],
        }


def median(make: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        make()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def trained(width: int, steps: int, folder: str) -> tuple[Clock, Trainer]:
    """A short run of the demo pair with a student of this width."""
    fields = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }  # fmt: skip
    clock = Clock()
    module = Distiller(StudentSpec(config=fields), ForwardKL(), LocalTeacher("demo"))
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[clock],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Demo(batch_size=16))
    return clock, trainer


def main() -> None:
    """Print the figures as a table and as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=100, help="steps between two saves")
    parser.add_argument("--width", type=int, default=256, help="width of the student")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured")
    told = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        clock, trainer = trained(told.width, told.steps, folder)
        step = statistics.median(clock.seconds[2:])
        guard = FiniteGuard(NotFinite())
        values = {"kl": torch.tensor(1.0)}
        seed = median(lambda: seed_step(1, 0, 7), 200)
        check = median(lambda: guard.passes(trainer, values, torch.tensor(1.0), clock.last), 200)
        safe, later = VerifiedIO(), VerifiedIO(asynchronous=True)
        target = Path(folder) / "step000001.ckpt"
        waits: list[float] = []

        def plain() -> None:
            torch.save(clock.state, Path(folder) / "plain.ckpt")

        def background() -> None:
            later.save_checkpoint(clock.state, target)

        def synced() -> None:
            plain()
            to_disk(Path(folder) / "plain.ckpt")

        def committed() -> None:
            safe.save_checkpoint(clock.state, target)

        def bare() -> None:
            with unsummed():
                committed()

        ways: dict[str, Callable[[], None]] = {
            "plain": plain, "synced": synced, "safe": committed, "unsummed": bare,
            "background": background,
        }  # fmt: skip
        saves: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for turn in range(REPEATS):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                os.sync()  # what the one before left unwritten is not this one's
                saves[name].append(median(ways[name], 1))
                if name == "background":
                    waits.append(median(later.wait, 1))
        size = target.stat().st_size
        summed = checksum()
        content = target.read_bytes()
        alone = median(lambda: summed.update(content), REPEATS)
        later.teardown()
    one = {name: statistics.median(found) for name, found in saves.items()}
    apart = [(a - b) / a for a, b in zip(saves["safe"], saves["unsummed"], strict=True)]
    cycle = told.every * step + one["plain"]
    guards = told.every * (seed + check)
    figures = {
        "step_ms": 1e3 * step,
        "guards_ms": 1e3 * (seed + check),
        "checkpoint_mb": size / 1e6,
        **{f"save_{name}_ms": 1e3 * seconds for name, seconds in one.items()},
        "written_behind_ms": 1e3 * statistics.median(waits),
        "checksum_ms": 1e3 * alone,
        "checksum_share": alone / one["safe"],
        "checksum_share_by_difference": statistics.median(apart),
        "guards_share": guards / cycle,
        "safe_share": (guards + one["safe"] - one["plain"]) / cycle,
        "background_share": (guards + one["background"] - one["plain"]) / cycle,
        "every": told.every,
    }
    for name, value in figures.items():
        shown = f"{value:.2%}" if "share" in name else f"{value:,.3f}"
        print(f"{name:>28} {shown}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
