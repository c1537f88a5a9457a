"""However a run ends, it ends on all ranks, and what was learned is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from kd_lightning.reliability.keeper import Keeper
from kd_lightning.reliability.ranks import largest

EXIT = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}
"""Signals that ask a run to stop, and its exit code then."""

GRACE = 30
"""Seconds that a worker lives on after a signal, and a rank after an exception."""


class Stopped(SystemExit):
    """The run was asked to stop and has saved its state; the code is that of the signal."""


class GracefulStop(Callback):
    """SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 stop the run at the end of the step, saved.

    A signal to any one rank stops all of them at the same step: the handler only takes a note,
    which the ranks compare at the end of each step. A second Ctrl-C stops at once. An exception on
    one rank ends that process within half a minute, whatever its peers wait for, so that they
    notice (the connection breaks, or the launcher ends them).
    """

    def __init__(self) -> None:
        self._asked = 0
        self._former: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after Lightning has set its own handlers: its one for SIGTERM exchanges tensors inside
        # the handler, which hangs two ranks, and ends with exit code 0
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in EXIT}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)  # a validation may be longer than the time that is left

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = largest(trainer, self._asked)
        if not asked:
            return
        keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, Keeper)]
        for keeper in keepers:
            keeper.save(trainer)
            keeper.wait()
        trainer.strategy.barrier("GracefulStop")
        saved = f"saved in {keepers[0].path(trainer.global_step)}" if keepers else "not saved"
        rank_zero_warn(
            f"{signal.Signals(asked).name}: stopped after step {trainer.global_step}, {saved}; "
            "go on with --resume=auto"
        )
        raise Stopped(EXIT[signal.Signals(asked)])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()
        if trainer.world_size > 1 and not isinstance(exception, Stopped):
            traceback.print_exception(exception)
            threading.Thread(target=_end_soon, daemon=True).start()

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: its batches are still needed
            signal.alarm(GRACE)
            return
        if self._asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._former = {}
        self._asked = 0


def _end_soon() -> None:
    """The clean-up after an exception may wait for ranks that wait for this one."""
    time.sleep(GRACE)
    os._exit(1)
