"""What the guards and safe saving cost: share of a cycle of steps and one save.

`python -m benchmarks.reliability [--every 100] [--width 256]` measures, in one process and in turn:
a training step; the guards of a step (seeding, the finite check, signals); a checkpoint written by
plain `torch.save`, by the commit protocol (digest, fsync, manifest, rename), and the same in the
background, where training waits for the copy only. The figure is

    (every x guards + safe save - plain save) / (every x step + plain save)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.application import quiet
from kd_lightning.data.skills import Demo
from kd_lightning.distiller import Distiller
from kd_lightning.losses import ForwardKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.reliability.checkpoint_io import VerifiedIO
from kd_lightning.reliability.finite import FiniteGuard, NotFinite
from kd_lightning.reliability.randomness import seed_step
from kd_lightning.teachers import LocalTeacher

REPEATS = 7


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

        saves: dict[str, list[float]] = {"plain": [], "safe": [], "background": []}
        for _ in range(REPEATS):
            saves["plain"].append(median(plain, 1))
            saves["safe"].append(median(lambda: safe.save_checkpoint(clock.state, target), 1))
            saves["background"].append(median(background, 1))
            waits.append(median(later.wait, 1))
        size = target.stat().st_size
        later.teardown()
    one = {name: statistics.median(found) for name, found in saves.items()}
    cycle = told.every * step + one["plain"]
    guards = told.every * (seed + check)
    figures = {
        "step_ms": 1e3 * step,
        "guards_ms": 1e3 * (seed + check),
        "checkpoint_mb": size / 1e6,
        **{f"save_{name}_ms": 1e3 * seconds for name, seconds in one.items()},
        "written_behind_ms": 1e3 * statistics.median(waits),
        "guards_share": guards / cycle,
        "safe_share": (guards + one["safe"] - one["plain"]) / cycle,
        "background_share": (guards + one["background"] - one["plain"]) / cycle,
        "every": told.every,
    }
    for name, value in figures.items():
        shown = f"{value:.2%}" if name.endswith("share") else f"{value:,.3f}"
        print(f"{name:>20} {shown}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
