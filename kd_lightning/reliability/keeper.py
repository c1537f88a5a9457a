"""When a run is saved, and which checkpoints are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.files import checksum_of
from kd_lightning.reliability import commit
from kd_lightning.reliability.checkpoint_io import VerifiedIO
from kd_lightning.reliability.ranks import largest


class Keeper(Checkpoint):
    """Saves `<run>/checkpoints/step000300.ckpt`, keeps the last few and the best.

    A checkpoint is written at each validation, at the end of each epoch and of the run, when the
    run is told to stop, and as often as `every_n_steps` or `every_minutes` says. It is written
    once, whole or not at all, and never changed. `last.ckpt` and `best.ckpt` are links. Each
    stands between two steps: after the step's validation, if there is one.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: int = 1,
        folder: str | None = None,
        asynchronous: bool = True,
    ) -> None:
        """Store the settings.

        Args:
            every_n_steps: Optimizer steps between two checkpoints, besides the other occasions.
            every_minutes: The same in minutes.
            keep_last: How many of the latest stay (at least 2: one may turn out to be damaged).
            monitor: The metric of a validation that tells which are best; None: no best ones.
            mode: Whether a small (`min`) or a large (`max`) value is good.
            keep_best: How many of the best stay.
            folder: Where they go; None: `checkpoints` in the run's folder.
            asynchronous: Write in the background while training goes on.
        """
        if keep_last < 2:
            raise KDError("keep_last must be at least 2: a damaged checkpoint needs one before it")
        if (every_n_steps or 1) < 1 or (every_minutes or 1) <= 0 or keep_best < 0:
            raise KDError("every_n_steps, every_minutes and keep_best must be positive")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.keep_best = keep_best
        self.folder = folder
        self.asynchronous = asynchronous
        self.scores: dict[str, float] = {}
        self._place = Path(folder or "checkpoints")
        self._saved = -1
        self._owed = False
        self._since = time.monotonic()
        self._io: VerifiedIO | None = None
        self._writes = False

    # ---- when ---------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._place = Path(self.folder or Path(trainer.default_root_dir) / "checkpoints").absolute()
        self._io = VerifiedIO(self.asynchronous)
        self._io.after_commit = self.settle
        trainer.strategy.checkpoint_io = self._io
        self._writes = trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved, self._owed, self._since = trainer.global_step, False, time.monotonic()
        if self._writes:
            commit.clear(self._place)
            if moved := commit.set_aside(self._place, trainer.global_step):
                names = ", ".join(path.name for path in moved)
                rank_zero_info(
                    f"the run goes on from step {trainer.global_step}: later checkpoints ({names}) "
                    f"were moved to {moved[0].parent}"
                )
        trainer.strategy.barrier("Keeper.on_train_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        often = self.every_n_steps is not None and step % self.every_n_steps == 0
        final = trainer.is_last_batch or trainer.should_stop or 0 <= trainer.max_steps <= step
        due = self._owed or often or final or self._is_time(trainer)
        if due and not trainer.should_stop and validation_follows(trainer):
            self._owed = True  # behind it, so that a resumed run need not repeat it
        elif due:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor is not None:
            value = float(trainer.callback_metrics.get(self.monitor, torch.tensor(math.nan)))
            if math.isfinite(value):  # what is not a number is never the best
                self.scores[self.path(trainer.global_step).name] = value
        self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        self.wait()

    def _is_time(self, trainer: Trainer) -> bool:
        if self.every_minutes is None:
            return False
        late = trainer.is_global_zero and time.monotonic() - self._since > 60 * self.every_minutes
        return bool(largest(trainer, int(late)))

    # ---- what ---------------------------------------------------------------------------------

    def path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self._place / f"step{step:06d}.ckpt"

    def save(self, trainer: Trainer) -> None:
        """Save the state after this step, once; a collective call."""
        step = trainer.global_step
        if self._saved == step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved, self._owed, self._since = step, False, time.monotonic()
        if getattr(trainer.strategy, "in_one_file", True):
            trainer.save_checkpoint(self.path(step), weights_only=False)
        else:
            self._save_folder(trainer, self.path(step))
        if self._io is None or not self._io.writing:
            self.settle()

    def _save_folder(self, trainer: Trainer, target: Path) -> None:
        """A checkpoint that all ranks write: aside, and renamed when the last one is done."""
        aside = target.with_name(f"{commit.UNFINISHED}{target.name}")
        if self._writes:
            aside = commit.temporary(target)
        trainer.strategy.barrier("Keeper: begun")
        try:
            trainer.save_checkpoint(aside, weights_only=False)
        except Exception:
            if self._writes:
                commit.remove(aside)
            raise
        sums = sums_of(aside, trainer.global_rank)
        if self._writes:
            commit.publish(aside, target, trainer.global_step, sums)
        trainer.strategy.barrier("Keeper: committed")

    def wait(self) -> None:
        """Until what was saved is on the disk."""
        if self._io is not None:
            self._io.wait()

    def newest(self, trainer: Trainer) -> Path | None:
        """The newest whole checkpoint, the same on all ranks; a collective call."""
        self.wait()
        found = commit.newest(self._place) if self._writes else None
        name: str = trainer.strategy.broadcast(found.path.name if found else "")
        return self._place / name if name else None

    def settle(self) -> None:
        """Renew the links and delete what is neither among the last nor among the best."""
        if not self._writes:
            return
        there = commit.committed(self._place)
        best = self.best([found.path.name for found in there])
        for found in there[: -self.keep_last]:
            if found.path.name not in best:
                commit.remove(found.path)
        if there:
            link(self._place / "last.ckpt", there[-1].path.name)
        if best:
            link(self._place / "best.ckpt", best[0])

    def best(self, names: list[str]) -> list[str]:
        """The names of the best of these, best first."""
        known = [name for name in names if name in self.scores]
        known.sort(key=lambda name: self.scores[name], reverse=self.mode == "max")
        return known[: self.keep_best]

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, "" where there is none; waits for it to be written."""
        self.wait()
        best = self.best([found.path.name for found in commit.committed(self._place)])
        return str(self._place / best[0]) if best else ""

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Lightning's forking launcher hands this over; the folder says the same."""

    @property
    def best_model_score(self) -> Tensor | None:
        """The best value of the metric."""
        name = Path(self.best_model_path).name
        return torch.tensor(self.scores[name], dtype=torch.float64) if name else None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """`max_time` is for one start: else a run that reached it could never go on."""
        checkpoint["callbacks"].pop("Timer", None)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])


def validation_follows(trainer: Trainer) -> bool:
    """Whether the trainer validates after this step (Lightning has no public way to ask)."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


def sums_of(folder: Path, rank: int) -> dict[str, str]:
    """Checksums of the shards in a folder, each by the process that wrote it; a collective call.

    One process alone would read the whole model while the others wait.
    """
    mine = {path.name: checksum_of(path) for path in folder.glob(f"__{rank}_*.distcp")}
    if not dist.is_initialized():
        return mine
    every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, mine)
    return {name: value for part in every for name, value in part.items()}


def link(at: Path, target: str) -> None:
    """A link to a neighbour, renewed in one piece."""
    aside = at.with_name(f"{commit.UNFINISHED}{at.name}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(at)
