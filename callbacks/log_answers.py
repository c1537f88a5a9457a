"""What student and teacher write, beside the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from kd_lightning.data.base import KDDataModule
from kd_lightning.distiller import Distiller
from kd_lightning.errors import KDError
from kd_lightning.evaluation.measure import (
    Answer,
    answer_kl,
    answered,
    batch_statistics,
    evaluating,
    merged,
    place,
)
from kd_lightning.evaluation.report import finite
from kd_lightning.parallel.step import evened
from kd_lightning.types import Example, Signal

COLUMNS = ("step", "id", "skill", "prompt", "reference", "teacher", "student", "kl", "grade")


class LogAnswers(Callback):
    """A table of prompts at each validation: reference, teacher's answer, student's, KL, grade.

    A document is answered by its continuation. Goes to `<run>/answers.jsonl` and, as a table, to
    Weights & Biases. The KL is that of the student from the teacher per token of the reference
    answer. The teacher answers once.
    """

    def __init__(self, prompts: int = 8, every: int = 1) -> None:
        """Store the settings.

        Args:
            prompts: The first so many validation examples.
            every: At every n-th validation.
        """
        if prompts < 1 or every < 1:
            raise KDError("LogAnswers: `prompts` and `every` must be at least 1")
        self.prompts = prompts
        self.every = every
        self._validations = 0
        self._of_teacher: dict[str, str] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = int(state_dict["validations"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if (self._validations - 1) % self.every != 0:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, KDDataModule) or not isinstance(pl_module, Distiller):
            raise KDError("LogAnswers needs a Distiller and a data module of kd_lightning")
        examples = data.examples("validation")[: self.prompts]
        rows = self.rows(pl_module, data, examples, trainer.global_step)
        if trainer.is_global_zero:
            self.write(trainer, rows)

    def rows(
        self, module: Distiller, data: KDDataModule, examples: list[Example], step: int
    ) -> list[dict[str, Any]]:
        """One row for each prompt; a collective call."""
        kl = self._kl(module, data, {e.id for e in examples})
        made = answered(module.student, data, examples, module.answers, kl)
        of_teacher = self._teacher_answers(module, data, examples)
        return [
            {
                "step": step,
                "id": a.id,
                "skill": a.skill,
                "prompt": a.prompt,
                "reference": a.references[0],
                "teacher": of_teacher.get(a.id),
                "student": a.text,
                "kl": a.kl,
                "grade": _headline(a),
                "grades": dict(a.grades),
            }
            for a in made
        ]

    def write(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        """Append to the file; a new table for the dashboard."""
        path = Path(trainer.default_root_dir) / "answers.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                table = [[row[name] for name in COLUMNS] for row in rows]
                logger.log_table("answers", list(COLUMNS), table, step=trainer.global_step)

    def _kl(
        self, module: Distiller, data: KDDataModule, wanted: set[str]
    ) -> dict[str, tuple[float, float]]:
        teacher = module.teacher
        if teacher is None or Signal.LOGITS not in teacher.offers:
            return {}
        rank, world = place()
        rows = [row for row in data.encoded("validation") if row.example.id in wanted]
        found: dict[str, tuple[float, float]] = {}
        if rows:
            mine = rows[rank::world] or rows[:1]  # sharded models need every rank
            with evaluating(module.student):
                whole = data.collate()(mine)
                pieces = whole.split(module.micro_batch_rows, module.micro_batch_tokens)
                for batch in evened(pieces, module.student.device):
                    by_row, _ = batch_statistics(module.student, teacher, batch)
                    found |= answer_kl(batch, by_row, wanted)
        return merged(found)

    def _teacher_answers(
        self, module: Distiller, data: KDDataModule, examples: list[Example]
    ) -> dict[str, str]:
        if module.teacher is None or Signal.TEXT not in module.teacher.offers:
            return {}
        if self._of_teacher is None:
            made = answered(module.teacher, data, examples, module.answers, {})
            self._of_teacher = {a.id: a.text for a in made}
        return self._of_teacher


def _headline(answer: Answer) -> float | None:
    return next(iter(answer.grades.values()), None)
