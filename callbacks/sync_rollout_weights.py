"""The student's weights for engines that draw elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.parallel.whole import in_one_piece
from kd_lightning.reliability.commit import temporary
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.served import ServedEngine


class SyncRolloutWeights(Callback):
    """Gives the engines of the rollout (VLLMServer, VLLMColocated) the student's weights.

    Before the first step and after every `every`-th, the student is written as a Hugging Face
    folder, `<run>/<folder>/step-N`, and the engines are told to load it; the folder before is then
    removed. Each has a name of its own, so no reader sees a half-written one or keeps an old one.
    How many steps old the weights of a drawing are is logged as `train/rollout/stale_steps`.

    That an engine took the weights is not believed but seen: after the 1st, 2nd, 4th, 8th ... time
    it draws a few tokens, whose log-probabilities are held against the student's. The mean
    difference is logged as `train/rollout/engine_apart`.
    """

    def __init__(
        self, every: int = 1, folder: str = "rollout_weights", limit: float | None = 0.1
    ) -> None:
        """Store the settings.

        Args:
            every: Optimizer steps between two of them; 1: answers are always the present student's.
            folder: Below the run's; engines on other machines must see it.
            limit: The most that an engine may differ from the student whose weights it has just
                been given, in nats per token. None: do not compare.
        """
        if every < 1:
            raise KDError(f"SyncRolloutWeights: every must be at least 1, not {every}")
        if limit is not None and not limit > 0:
            raise KDError(f"SyncRolloutWeights: limit must be greater than 0, not {limit}")
        self.every = every
        self.folder = folder
        self.limit = limit
        self._times = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sync(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        ages = [step - e.loaded for e in engines(pl_module) if e.loaded is not None]
        for logger in trainer.loggers:
            logger.log_metrics({"train/rollout/stale_steps": float(max(ages))}, step + 1)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step % self.every == 0 and any(e.loaded != step for e in engines(pl_module)):
            self._sync(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for engine in engines(pl_module):
            engine.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _sync(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, load, forget the former; collective."""
        found = engines(pl_module)
        if not found or not isinstance(pl_module, Distiller):
            raise KDError(
                "SyncRolloutWeights serves a rollout that draws with VLLMServer or VLLMColocated "
                "(rollout.init_args.engine): leave the callback out"
            )
        step, place = trainer.global_step, Path(trainer.default_root_dir) / self.folder
        target = place / f"step-{step}"
        student = in_one_piece(pl_module.student, pl_module.spec)
        if trainer.is_global_zero:
            assert student is not None
            write(student, target)
        trainer.strategy.barrier("rollout weights written")
        for engine in found:
            if engine.everywhere or trainer.is_global_zero:
                engine.load(target)
        self._times += 1
        if student is not None and self._times & (self._times - 1) == 0:
            self._compare(trainer, found, student)
        trainer.strategy.barrier("rollout weights loaded")
        for engine in found:
            engine.loaded = step
        if trainer.is_global_zero:
            for former in place.iterdir():
                if former != target:
                    shutil.rmtree(former)

    def _compare(self, trainer: Trainer, found: Sequence[ServedEngine], student: CausalLM) -> None:
        """Refuse an engine that does not have the weights that it was given."""
        if self.limit is None or not trainer.is_global_zero:
            return
        apart = max(engine.apart(student) for engine in found)
        for logger in trainer.loggers:
            logger.log_metrics({"train/rollout/engine_apart": apart}, trainer.global_step)
        if not apart <= self.limit:
            raise KDError(
                f"after it was given the student's weights, the engine's log-probabilities differ "
                f"from the student's by {apart:.2f} nats a token (limit {self.limit:g}): it serves "
                "another model, or did not take all weights (vLLM's build for processors keeps a "
                "tied head as it was: train with tie_word_embeddings: false there)"
            )


def write(student: CausalLM, target: Path) -> None:
    """The student's folder, whole or not at all."""
    written = temporary(target)
    student.save(written)
    if target.exists():
        shutil.rmtree(target)
    written.replace(target)


def engines(module: LightningModule) -> list[ServedEngine]:
    """Engines of the rollout that have weights of their own, each once."""
    assert isinstance(module, Distiller)
    found = list(_engines(module.answering.rollout))
    return [engine for i, engine in enumerate(found) if engine not in found[:i]]


def _engines(rollout: Rollout) -> Iterator[ServedEngine]:
    engine = getattr(rollout, "engine", None)
    if isinstance(engine, ServedEngine):
        yield engine
    for part in rollout.parts:
        yield from _engines(part)
