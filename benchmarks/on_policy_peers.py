"""On-policy distillation beside TRL's trainers: tokens a second, and how close the student comes.

    python -m benchmarks.on_policy_peers

Each round is a seed: one start for all, then every way trains it in a fresh process with one
thread, on the same prompts in the same order for as many optimizer steps, in float32, with the same
optimizer, learning rate and sampling, without evaluation or logging. Rounds begin with another way.
A token counts where the loss does: those of answers.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import on_policy_trl, stories
from benchmarks.harness import OURS, Report, alone, median, parser
from benchmarks.on_policy_run import Job, Ran, ours
from kd_lightning.application import quiet

Way = Callable[[Job], Ran]
GKD, DISTILLATION = "TRL GKD", "TRL distillation"
TUNED = ", activations kept"
WAYS: dict[str, Way] = {
    OURS: ours,
    GKD: partial(on_policy_trl.gkd, recompute=True),
    GKD + TUNED: partial(on_policy_trl.gkd, recompute=False),
    DISTILLATION: partial(on_policy_trl.distillation, recompute=True),
    DISTILLATION + TUNED: partial(on_policy_trl.distillation, recompute=False),
}
"""TRL's trainers recompute activations unless told otherwise, and GKD's then generates without a
cache of keys and values."""
TARGETS = {GKD: 3.0, DISTILLATION: 1.5}


def installed() -> dict[str, Way]:
    """The ways that can be run here."""
    if importlib.util.find_spec("trl") is None:
        return {OURS: ours}
    return WAYS


def run(name: str, job: Job) -> dict[str, Any]:
    """Train in this process, with one thread; what came of it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")
    quiet()
    torch.set_num_threads(1)
    return asdict(WAYS[name](job))


def measured(folder: str, known: Any, rows: Any, length: int) -> dict[str, float]:
    """Of a student: on its own answers, and on the held-back stories."""
    student = stories.student(Path(folder), known).eval()
    free = stories.free_running(student, known, rows, 2, length, length)
    told = stories.forced(student, known, rows)
    return {"free KL(s||t)": free["reverse_kl"], "forced KL(t||s)": told["kl"]}


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--beta", type=float, default=1.0, help="1: reverse KL; 0.5: JSD")
    options.add_argument("--folder", type=Path, default=Path("runs/benchmarks/on_policy_stories"))
    options.add_argument("--seeds", type=int, nargs="+", help="rounds; else 0, 1, ... repeats - 1")
    asked = options.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    full = asked.preset == "full"
    size = {"steps": 30, "warm": 4} if full else {"steps": 3, "warm": 1, "drawn": 20}
    known = stories.teacher()
    rows = stories.held_back(known, None if full else 4)
    name = "reverse KL" if asked.beta == 1 else f"JSD, beta {asked.beta:g}"
    report = Report(
        "on_policy_peers" if asked.beta == 1 else "on_policy_peers_jsd",
        f"On-policy training ({name}): 260k teacher, 75k student, {size['steps']} steps of "
        f"{stories.ROWS} answers",
        preset=asked.preset,
    )
    found = installed()
    if len(found) == 1:
        report.notes.append("trl is not installed (make bench-peers): left out")
    rates: dict[str, list[float]] = {way: [] for way in found}
    for seed in asked.seeds or range(asked.repeats):
        place = stories.start(asked.folder, seed, 400 if full else 2, known)
        with tempfile.TemporaryDirectory() as folder:
            begun = measured(str(place), known, rows, Job.drawn)
            report.row(way="start", seed=seed, tokens=0, CPU=0.0, wall=0.0, rate=0.0, **begun)
            order = list(found)
            for way in order[seed % len(order) :] + order[: seed % len(order)]:
                job = Job(
                    str(stories.TEACHER), str(place), f"{folder}/{order.index(way)}", seed,
                    asked.beta, **size,
                )  # fmt: skip
                ran = alone(run, way, job, preset=asked.preset)
                rates[way].append(ran["tokens"] / ran["cpu"])
                cells = {"tokens": ran["tokens"], "CPU": ran["cpu"], "wall": ran["wall"]}
                values = measured(ran["student"], known, rows, Job.drawn)
                report.row(way=way, seed=seed, **cells, rate=rates[way][-1], **values)
    middle = {way: median(each) for way, each in rates.items()}
    for way, values in rates.items():
        pairs = zip(rates[OURS], values, strict=True)
        ratio = median([mine / theirs for mine, theirs in pairs])
        report.notes.append(f"{OURS} / {way}: {ratio:.2f} (median of the rounds' ratios)")
        if way.removesuffix(TUNED) in TARGETS:
            what = f"{OURS} / {way}, trained tokens a CPU second"
            report.at_least(what, ratio, TARGETS[way.removesuffix(TUNED)])
    report.finish(asked.out, panels(report, middle), "")
    return report


def panels(report: Report, rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Two of bars: how fast, and how close the students are then."""
    key = "free KL(s||t)"
    after = {way: [row[key] for row in report.rows if row["way"] == way] for way in rates}
    means = {way: sum(values) / len(values) for way, values in after.items()}
    return {"trained tokens a CPU second": rates, f"then {key}, nats (mean)": means}


if __name__ == "__main__":
    main()
