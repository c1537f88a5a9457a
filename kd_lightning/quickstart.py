"""What `make quickstart` runs: the demo pair distilled, with labels alone beside it, compared."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import KDError

if TYPE_CHECKING:
    from kd_lightning.evaluation.measure import Measured

ARMS = {"labels": "labels alone", "distilled": "distilled"}
"""Folder of each arm below the quickstart's, and its column in the table."""

CONFIGS = {"labels": "demo_labels.yaml", "distilled": "demo.yaml"}
"""The experiment that each arm is: they differ in the loss and the folder."""


def commands(
    folder: Path, configs: Path, seed: int | None = None, overrides: Sequence[str] = ()
) -> list[list[str]]:
    """The command lines that the quickstart consists of, `train.py` left out."""
    keys = () if seed is None else ("seed_everything", "data.row_seed", "data.seed")
    return [
        [
            "fit",
            *("-c", str(configs / "experiment" / CONFIGS[arm])),
            f"--trainer.default_root_dir={folder / arm}",
            *(f"--{key}={seed}" for key in keys),
            *overrides,
        ]
        for arm in ARMS
    ]


def quickstart(
    folder: Path,
    configs: Path = Path("configs"),
    seed: int | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Train both arms, write and print the comparison; column to exact match on the test rows.

    Args:
        folder: where the two runs and the comparison go.
        configs: the checkout's `configs` folder.
        seed: of the student's first weights, the rows, the slips and the order; None: the
            configuration's.
        overrides: further options for both arms alike.
    """
    from kd_lightning.cli import main as command_line

    if not (configs / "experiment").is_dir():
        raise KDError(
            f"there is no {configs / 'experiment'}: run the quickstart in a checkout of the project"
        )
    for number, arguments in enumerate(commands(folder, configs, seed, overrides), 1):
        print(f"\n[{number}/2] python train.py {' '.join(arguments)}", flush=True)
        if command_line(arguments) != 0:
            raise KDError("the quickstart stopped: the line above says why")
    return compare(folder)


def compare(folder: Path) -> dict[str, float]:
    """One table of what the two runs measured on the same test rows."""
    from kd_lightning.evaluation.evaluate import write_comparison

    columns = columns_of(folder)
    print()
    write_comparison(folder / "comparison", columns, split="test", baseline="labels alone")
    return {column.name: column.metrics["exact_match"] for column in columns}


def columns_of(folder: Path) -> list[Measured]:
    """Teacher, the student before, after labels alone, and distilled."""
    import torch

    from kd_lightning.evaluation.measure import Measured

    found: dict[str, list[Measured]] = {}
    for arm in ARMS:
        path = folder / arm / "comparison.pt"
        states = torch.load(path, weights_only=True)["columns"]
        found[arm] = [Measured.from_state(state) for state in states]
    *start, distilled = found["distilled"]
    labels = found["labels"][-1]
    after = {"labels": labels, "distilled": distilled}
    return [*start, *(replace(measured, name=ARMS[arm]) for arm, measured in after.items())]


def fresh(folder: Path) -> Path:
    """The folder, or the first `folder-2`, `folder-3`, ... that does not exist."""
    number, found = 2, folder
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the shell; 0 when it worked, 2 with one sentence when the input was wrong."""
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="default: runs/quickstart")
    parser.add_argument("--seed", type=int, default=None, help="another student, other rows")
    asked, overrides = parser.parse_known_args(arguments)
    folder = asked.folder or fresh(Path("runs/quickstart"))
    started = time.monotonic()
    try:
        matched = quickstart(folder, seed=asked.seed, overrides=overrides)
    except KDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    took = time.monotonic() - started
    print("\nexact match on test rows: " + ", ".join(f"{n} {v:.1%}" for n, v in matched.items()))
    print(f"the student is in {folder / 'distilled' / 'student'}; {took:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
