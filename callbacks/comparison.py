"""The one table at the end of a run: teacher, student before, student after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.image import imread
from rich.console import Console

from kd_lightning.data.base import KDDataModule
from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.evaluation.measure import Measured, measure
from kd_lightning.evaluation.plots import write_plots
from kd_lightning.evaluation.report import (
    comparison_dict,
    comparison_markdown,
    comparison_rows,
    comparison_table,
    metric_of,
    write_json,
)
from kd_lightning.loggers import MetricsFile, read_metrics
from kd_lightning.parallel.states import read_weights
from kd_lightning.reliability.commit import require_whole, step_in
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.types import Signal


class Comparison(Callback):
    """Measures teacher and untrained student at the start, the trained student at the end.

    Prints the table, writes `comparison.json`, `comparison.md` and `plots/*.png` into the run's
    folder and sends table and plots to the loggers that take them.
    """

    def __init__(
        self, split: Literal["validation", "test"] = "validation", rows: int | None = 64
    ) -> None:
        """Store the settings.

        Args:
            split: What is measured on.
            rows: Examples that are answered, None: all.
        """
        self.split = split
        self.rows = rows
        self.results: list[Measured] = []
        self.weights = ""
        self._resumed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"before": [m.state for m in self.results if m.name != "student after"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results = [Measured.from_state(state) for state in state_dict["before"]]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = int(checkpoint["global_step"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = self._parts(trainer, pl_module)
        if self.split == "test" and "test" not in data.summary:
            data.setup("test")
        if self._resumed is not None and self.results:
            return  # measured when the run began; the checkpoint has kept it
        self.results = []
        speaks = Signal.TEXT in getattr(module.teacher, "offers", ())  # a cache cannot answer
        if self._has_logits(module) and speaks:
            self.results.append(self._measure(module, data, "teacher"))
        name = "student before" if self._resumed is None else f"student at {self._resumed}"
        self.results.append(self._measure(module, data, name))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = self._parts(trainer, pl_module)
        with best_weights(trainer, module) as self.weights:
            self.results.append(self._measure(module, data, "student after"))
        if trainer.is_global_zero:
            self.keep(Path(trainer.default_root_dir) / "comparison.pt")
            self.report(trainer)

    def keep(self, path: Path) -> None:
        """For the model card of a later export."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"split": self.split, "columns": [m.state for m in self.results]}, path)

    def report(self, trainer: Trainer) -> None:
        """Print, write, send."""
        folder = Path(trainer.default_root_dir)
        tokens = int(self.results[0].sums[:, 0].sum())
        title = f"{self.split}: {tokens:,} answer tokens; student after: {self.weights}"
        Console().print(comparison_table(self.results), title, sep="")
        facts = {"split": self.split, "weights": self.weights}
        write_json(folder / "comparison.json", comparison_dict(self.results, **facts))
        text = comparison_markdown(self.results)
        (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
        plots = write_plots(folder / "plots", self.results, self._metrics(trainer))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [
                    [row.skill, row.label, *[metric_of(row.metric).show(v) for v in row.values]]
                    for row in comparison_rows(self.results)
                ]
                columns = ["skill", "metric", *[m.name for m in self.results]]
                logger.log_table("comparison", columns, rows, step=trainer.global_step)
                for name, path in plots.items():
                    logger.log_image(f"plots/{name}", [str(path)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                for name, path in plots.items():
                    image = imread(path)[:, :, :3]
                    logger.experiment.add_image(
                        f"plots/{name}", image, trainer.global_step, dataformats="HWC"
                    )

    def _metrics(self, trainer: Trainer) -> list[dict[str, str]]:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                return read_metrics(logger.path)
            if isinstance(logger, CSVLogger):
                logger.save()
                return read_metrics(Path(logger.log_dir) / "metrics.csv")
        rank_zero_info("no CSV logger, so no loss curves are drawn: use configs/logger/csv.yaml")
        return []

    def _measure(self, module: Distiller, data: KDDataModule, name: str) -> Measured:
        teaches = self._has_logits(module)
        teacher = module.teacher
        of_teacher = name == "teacher" and teacher is not None
        return measure(
            teacher if of_teacher and teacher is not None else module.student,
            data,
            self.split,
            teacher=teacher if teaches and not of_teacher else None,
            rows=self.rows,
            sampling=module.answers,
            name=name,
            micro_batch_rows=module.micro_batch_rows,
            micro_batch_tokens=module.micro_batch_tokens,
        )

    @staticmethod
    def _has_logits(module: Distiller) -> bool:
        return module.teacher is not None and Signal.LOGITS in module.teacher.offers

    @staticmethod
    def _parts(trainer: Trainer, module: LightningModule) -> tuple[Distiller, KDDataModule]:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, KDDataModule) or not isinstance(module, Distiller):
            raise KDError("Comparison needs a Distiller and a data module of kd_lightning")
        return module, data


@contextmanager
def best_weights(trainer: Trainer, module: LightningModule) -> Iterator[str]:
    """The module with its best checkpoint's weights for a while; gives their description.

    Without a checkpoint that watches a metric: the last weights.
    """
    best = next(
        (
            c
            for c in trainer.checkpoint_callbacks
            if isinstance(c, Keeper) and c.monitor and c.best_model_path
        ),
        None,
    )
    if best is None or best.best_model_score is None:
        yield f"last weights (step {trainer.global_step})"
        return
    path = Path(best.best_model_path)
    trainer.strategy.barrier("best_weights")  # the first process has written it
    step = step_in(path.name)
    if step == trainer.global_step:
        yield f"last weights (step {step}), which are the best by {best.monitor}"
        return
    last = {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
    read_weights(require_whole(path), module)
    try:
        yield f"best weights by {best.monitor} ({float(best.best_model_score):.4f}, step {step})"
    finally:
        module.load_state_dict(last)
