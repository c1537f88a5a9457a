"""What was run, with which versions, from which commit."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kd_lightning.errors import KDError
from kd_lightning.evaluation.report import write_json
from kd_lightning.tracking import describe_run


class RunRecord(Callback):
    """Writes `run.json` into the run's folder: command, versions, platform, commit; once a start.

    A folder that already holds a run is refused, unless the run is continued from a checkpoint.
    """

    def __init__(self) -> None:
        self._begun: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / "run.json"
        if stage != "fit" or not trainer.is_global_zero or self._begun == path:
            return
        starts = []
        if path.is_file():
            if trainer.ckpt_path is None:
                raise KDError(
                    f"{path.parent} already holds a run: write another folder "
                    "(--trainer.default_root_dir=<folder>) or continue that run "
                    f"(--ckpt_path={path.parent / 'checkpoints' / 'last.ckpt'})"
                )
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        checkpoint = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        write_json(path, {"starts": [*starts, {**describe_run(), "checkpoint": checkpoint}]})
        self._begun = path
