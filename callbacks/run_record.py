"""What was run, with which versions, from which commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kd_lightning.evaluation.report import write_json
from kd_lightning.tracking import describe_run, refuse_existing_run


class RunRecord(Callback):
    """Writes `run.json` into the run's folder: command, versions, platform, commit; once a start.

    A folder that already holds a run is refused, unless the run is continued from a checkpoint.
    """

    def __init__(self) -> None:
        self._begun: Path | None = None
        self._continued = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._continued = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        start = getattr(trainer, "start", None)
        self._continued = start is not None and start.continues  # also before a first checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "run.json"
        if not trainer.is_global_zero or self._begun == path:
            return
        if not self._continued:
            refuse_existing_run(path.parent, markers=("run.json",))
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"starts": []}
        start = {**describe_run(), "continued": self._continued}
        write_json(path, {"starts": [*known["starts"], start]})
        self._begun = path
