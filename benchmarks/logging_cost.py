"""What the default logging costs: CPU time of a step with it and without.

`python -m benchmarks.logging_cost` trains the tiny stories pair in alternating stretches of steps
that log as configured (every 10th step, all metrics) and that never log, in one process.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kd_lightning.application import quiet
from kd_lightning.data.skills import PlainText
from kd_lightning.distiller import Distiller
from kd_lightning.loggers import MetricsFile
from kd_lightning.losses import ForwardKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers import LocalTeacher

STRETCH = 20
EVERY = 10


class Alternate(Callback):
    """Switches logging on and off and notes the CPU seconds of each stretch."""

    def __init__(self) -> None:
        """Two lists of seconds a step."""
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last step of a stretch."""
        if trainer.global_step % STRETCH == 0:
            now = time.process_time()
            logged = trainer.log_every_n_steps == EVERY  # type: ignore[attr-defined]
            if trainer.global_step > 2 * STRETCH:
                self.seconds[logged].append((now - self._start) / STRETCH)
            trainer.log_every_n_steps = 10**9 if logged else EVERY  # type: ignore[attr-defined]
            self._start = time.process_time()


def main() -> None:
    """Print the medians and the share."""
    quiet()
    torch.set_num_threads(1)
    shared = os.environ.get("KD_SHARED", "../shared")
    size = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = Distiller(
        StudentSpec(config={"model_type": "llama", **size, **heads}),
        ForwardKL(),
        LocalTeacher(f"{shared}/models/stories260k"),
    )
    text = f"{shared}/data/lm_text/stories260k_samples.train.jsonl"
    data = PlainText(text, end="bos", max_length=256, batch_size=8)
    watch = Alternate()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=12 * STRETCH,
            limit_val_batches=0,
            log_every_n_steps=EVERY,
            logger=MetricsFile(folder),
            callbacks=[watch],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(model, data)
    on, off = (statistics.median(watch.seconds[logged]) for logged in (True, False))
    print(
        f"CPU ms a step: {1000 * on:.1f} logged every {EVERY} steps, {1000 * off:.1f} never logged"
    )
    print(f"logging costs {100 * (on / off - 1):+.1f}% (medians of 5 stretches of {STRETCH} steps)")


if __name__ == "__main__":
    main()
