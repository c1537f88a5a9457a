"""Teacher, student and baseline side by side: what `kd evaluate` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kd_lightning.errors import KDError
from kd_lightning.evaluation.measure import Measured, measure
from kd_lightning.evaluation.plots import write_plots
from kd_lightning.evaluation.report import (
    answer_rows,
    comparison_dict,
    comparison_markdown,
    comparison_table,
    write_json,
    write_jsonl,
)
from kd_lightning.models import vocabulary
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.tracking import describe_run
from kd_lightning.types import Signal

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule
    from kd_lightning.distiller import Distiller

SPLITS = ("train", "validation", "test")


def evaluate(
    distiller: Distiller,
    data: KDDataModule,
    output: Path,
    baseline: str | None = None,
    rows: int | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Measure every model on a split and write table, JSON, plots and answers into `output`.

    Args:
        distiller: with student and teacher built and in place.
        data: what they are measured on, set up for the split.
        output: folder for comparison.json, comparison.md, answers.jsonl and the plots.
        baseline: folder or hub name of another model with the student's tokenizer.
        rows: examples that are answered and graded; None: all.
        split: train, validation or test.
    """
    if split not in SPLITS:
        raise KDError(f"there is no split {split}: write one of {', '.join(SPLITS)}")
    other: CausalLM | None = None
    if baseline is not None:
        spec = StudentSpec(path=baseline, dtype="auto")
        other = (
            build_student(spec, _same_tokenizer(baseline, distiller))
            .to(distiller.student.device)
            .eval()
        )
    teacher = distiller.teacher
    has_logits = teacher is not None and Signal.LOGITS in teacher.offers
    settings: dict[str, Any] = {
        "rows": rows,
        "sampling": distiller.answers,
        "micro_batch_rows": distiller.micro_batch_rows,
        "micro_batch_tokens": distiller.micro_batch_tokens,
    }
    columns: list[Measured] = []
    if teacher is not None and has_logits and Signal.TEXT in teacher.offers:
        columns.append(measure(teacher, data, split, name="teacher", **settings))
    compared = {**settings, "teacher": teacher if has_logits else None}
    columns.append(measure(distiller.student, data, split, name="student", **compared))
    if other is not None:
        columns.append(measure(other, data, split, name="baseline", **compared))
    return write_comparison(output, columns, split=split, baseline=baseline, run=describe_run())


def write_comparison(output: Path, columns: list[Measured], **facts: Any) -> dict[str, Any]:
    """Print the table; write comparison.json, comparison.md, answers.jsonl and plots/*.png."""
    title = f"{facts['split']}, {int(columns[0].sums[:, 0].sum()):,} answer tokens"
    Console().print(comparison_table(columns, title))
    content = comparison_dict(columns, **facts)
    write_json(output / "comparison.json", content)
    (output / "comparison.md").write_text(comparison_markdown(columns) + "\n", encoding="utf-8")
    if any(column.answers for column in columns):
        write_jsonl(output / "answers.jsonl", answer_rows(columns))
    plots = write_plots(output / "plots", columns)
    content["plots"] = {name: str(path) for name, path in plots.items()}
    Console().print(f"written to {output}", style="dim", soft_wrap=True)
    return content


def _same_tokenizer(path: str, distiller: Distiller) -> Any:
    from kd_lightning.models.loading import load_tokenizer

    tokenizer = load_tokenizer(path)
    try:
        vocabulary.check_same(distiller.tokenizer, tokenizer)
    except KDError as error:
        raise KDError(
            f"the baseline {path} has another tokenizer than the student: choose a baseline of "
            "the same tokenizer"
        ) from error
    return tokenizer
