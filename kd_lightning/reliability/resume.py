"""Going on with a run: from which checkpoint, and whether the configuration still is the run's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import KDError
from kd_lightning.reliability import commit

log = logging.getLogger(__name__)

RECORD = "config.yaml"

FREE = (
    "model.graded_rows",
    "model.answers",
    "model.micro_batch",
    "model.kernel",
    "model.not_finite",
    "model.student.attention",
    "model.student.compile",
    "model.student.gradient_checkpointing",
    "data.init_args.batch_size",  # with the number of processes: the data module compares
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    "data.init_args.limit_validation",
    "data.init_args.limit_test",
    "data.init_args.test",
)
"""What may change under `model` and `data` without making it another run."""

BOUND = ("seed_everything", "model", "data", "trainer.precision", "trainer.limit_train_batches",
         "trainer.overfit_batches")  # fmt: skip
"""What makes a run what it is; everything else may change."""


@dataclass(frozen=True)
class Start:
    """Where a fit begins."""

    checkpoint: Path | None = None
    """None: at step 0."""
    step: int = 0
    """Optimizer steps done."""
    continues: bool = False
    """Whether the folder's run goes on (also one that was ended before its first checkpoint)."""
    forced: bool = False
    """Whether a changed configuration was accepted unseen."""


def find(how: str, folder: Path, config: Mapping[str, Any] | None) -> Start:
    """Where to go on: `auto`, `never`, `force` or a checkpoint's path.

    Args:
        how: What the user wrote to --resume.
        folder: The run's folder.
        config: The whole configuration as it would be recorded; None: nothing to compare.
    """
    if how == "never":
        return Start()
    if how in ("auto", "force"):
        found = commit.newest(folder / "checkpoints")
        record = folder / RECORD
    else:
        path = Path(how).absolute()
        if not path.exists():
            raise KDError(
                f"there is no checkpoint {how}: write auto, never, force or an existing path to "
                "--resume"
            )
        path = path.resolve()
        if wrong := commit.problem(path):
            raise KDError(f"the checkpoint {path} is damaged: {wrong}; --resume=auto finds another")
        step = next(c.step for c in commit.committed(path.parent) if c.path == path)
        found = commit.Committed(path, step)
        record = path.parent.parent / RECORD
    begun = record.is_file()
    if begun and config is not None:
        compare(yaml.safe_load(record.read_text(encoding="utf-8")), config, how)
    if found is None:
        if begun:
            log.warning("%s holds no checkpoint: its run begins again at step 0", folder)
        return Start(continues=begun, forced=how == "force")
    log.info("going on from %s (step %d)", found.path, found.step)
    inside = folder.absolute() in found.path.absolute().parents
    return Start(found.path, found.step, inside, how == "force")


def compare(old: Mapping[str, Any], new: Mapping[str, Any], how: str) -> None:
    """Say what has changed in the configuration; refuse what would not be the same run."""
    changed = changes(old, new)
    for key, (before, now) in changed.items():
        log.warning("changed since the run began: %s: %s -> %s", key, before, now)
    wrong = [key for key in changed if is_bound(key)]
    if wrong and how != "force":
        key = wrong[0]
        before, now = changed[key]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise KDError(
            f"{key} was {before} when the run began and is {now}{more}: that is another run. Write "
            "another folder (--trainer.default_root_dir=<folder>), the former value, or "
            "--resume=force to go on all the same"
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key to (before, now), where they differ."""
    before, now = dict(_flat(old)), dict(_flat(new))
    keys = [*before, *(key for key in now if key not in before)]
    return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}


def is_bound(key: str) -> bool:
    """Whether a changed value makes it another run."""
    return _under(key, BOUND) and not any(key.startswith(free) for free in FREE)


def _under(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{at}.{key}" if at else str(key))
    else:
        yield at, value
