"""On-policy against off-policy distillation of a real pair, from one start, for equal CPU time.

    python -m benchmarks.on_policy_stories

Each arm goes on from the seed's common start for the same CPU seconds of its process, with the same
learning rate as a function of the time spent. Measured on stories that nobody learns from: the
divergence on the student's own answers to their beginnings, and on the stories themselves.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks import stories
from benchmarks.controls import ShuffledTeacher
from benchmarks.harness import Report, parser
from kd_lightning.application import quiet
from kd_lightning.losses.base import Loss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Sampling


@dataclass(frozen=True)
class Arm:
    """A way to go on."""

    loss: Loss
    on_policy: bool = False
    shuffled: bool = False


ARMS = {
    "off-policy forward KL": Arm(ForwardKL()),
    "off-policy reverse KL": Arm(ReverseKL()),
    "off-policy JSD": Arm(JensenShannon(0.5)),
    "on-policy reverse KL": Arm(ReverseKL(), on_policy=True),
    "on-policy JSD": Arm(JensenShannon(0.5), on_policy=True),
    "on-policy reverse KL, shuffled teacher": Arm(ReverseKL(), on_policy=True, shuffled=True),
}
CLAIMED = ("on-policy reverse KL", "on-policy JSD")
HELD = (
    *((name, "off-policy forward KL") for name in CLAIMED),
    ("on-policy reverse KL", "off-policy reverse KL"),  # the words' part of it, not the loss's
    ("on-policy JSD", "off-policy JSD"),
    ("off-policy forward KL", "on-policy reverse KL, shuffled teacher"),
)
"""Arms that are to be lower, and than which."""


@dataclass(frozen=True)
class Size:
    """How much work."""

    start: int = 400  # steps of the common start
    seconds: float = 20.0  # of each arm
    lr: float = 3e-3
    drawn: int = 128  # tokens of an answer in training
    length: int = 240  # and of a measured one
    stories: int | None = None  # held-back ones that are measured on; None: all 80
    answers: int = 2  # to each of them


SIZES = {"full": Size(), "tiny": Size(3, 1.0, drawn=8, length=12, stories=4, answers=1)}


class Clock(Callback):
    """Ends a run after some CPU seconds of this process; says which share of them is spent."""

    def __init__(self, seconds: float) -> None:
        """Nothing is spent before the first step."""
        self.seconds = seconds
        self.steps = 0
        self._begun: float | None = None

    @property
    def spent(self) -> float:
        """CPU seconds since training began."""
        return 0.0 if self._begun is None else time.process_time() - self._begun

    def factor(self, step: int) -> float:
        """Of the learning rate: a warm-up over 5% of the time, then half a cosine down to 2%."""
        done = min(1.0, self.spent / self.seconds)
        warm = min(1.0, done / 0.05 + 0.02)
        return warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on."""
        self._begun = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """Stop where the time is spent."""
        self.steps = trainer.global_step
        trainer.should_stop = self.spent >= self.seconds


def train(arm: Arm, place: Path, seed: int, size: Size, known: LocalTeacher) -> dict[str, Any]:
    """Go on from the start; what is measured then."""
    teacher = known
    if arm.shuffled:
        teacher = ShuffledTeacher(str(stories.TEACHER))
        teacher.materialize(torch.device("cpu"))
    sampling = Sampling(max_new_tokens=size.drawn, temperature=1.0)
    own = FromStudent(sampling=sampling, document_prompt=stories.PROMPT)
    clock = Clock(size.seconds)
    student = stories.fit(
        StudentSpec(path=str(place)),
        copy.deepcopy(arm.loss),
        teacher,
        seed,
        10**6,
        size.lr,
        partial(LambdaLR, lr_lambda=clock.factor),
        own if arm.on_policy else None,
        [clock],
    )
    return {"steps": clock.steps, "cpu_seconds": clock.spent, "student": student}


def measured(student: Any, known: LocalTeacher, rows: Any, size: Size) -> dict[str, float]:
    """Free-running and teacher-forced divergences, nats per token."""
    free = stories.free_running(student, known, rows, size.answers, size.length, size.drawn)
    told = stories.forced(student, known, rows)
    return {
        "free KL(s||t)": free["reverse_kl"],
        "se": free["reverse_kl_se"],
        "free KL(t||s)": free["kl"],
        "se ": free["kl_se"],
        "first tokens KL(s||t)": free["early_reverse_kl"],
        "entropy": free["entropy"],
        "forced KL(t||s)": told["kl"],
        "forced KL(s||t)": told["reverse_kl"],
    }


def main(arguments: list[str] | None = None) -> Report:
    """All seeds, all arms, one after the other."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--arms", nargs="*", default=list(ARMS))
    options.add_argument("--seconds", type=float, help="CPU seconds of an arm (20)")
    options.add_argument("--add", action="store_true", help="keep the other seeds of the last run")
    options.add_argument("--folder", type=Path, default=Path("runs/benchmarks/on_policy_stories"))
    asked = options.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    size = SIZES[asked.preset]
    size = replace(size, seconds=asked.seconds or size.seconds)
    known = stories.teacher()
    rows = stories.held_back(known, size.stories)
    report = Report(
        "on_policy_stories",
        f"On-policy and off-policy from one start, {size.seconds:.0f} CPU seconds each",
        preset=asked.preset,
    )
    last = asked.out / f"{report.name}.json"
    if asked.add and last.is_file():
        kept = json.loads(last.read_text())["rows"]
        report.rows += [row for row in kept if row["seed"] not in asked.seeds]
    for seed in asked.seeds:
        place = stories.start(asked.folder, seed, size.start, known)
        begun = measured(stories.student(place, known).eval(), known, rows, size)
        report.row(arm="common start", seed=seed, steps=0, seconds=0.0, **begun)
        for name in asked.arms:
            made = train(ARMS[name], place, seed, size, known)
            values = measured(made["student"], known, rows, size)
            line = {"seed": seed, "steps": made["steps"], "seconds": made["cpu_seconds"]}
            report.row(arm=name, **line, **values)
    report.rows.sort(key=lambda row: int(row["seed"]))
    found = {name: [row for row in report.rows if row["arm"] == name] for name in asked.arms}
    hold(report, found)
    key = "free KL(s||t)"
    bars = {name: sum(v[key] for v in values) / len(values) for name, values in found.items()}
    panels = {f"{key}, mean over seeds": _ours(bars)}
    key = "forced KL(t||s)"
    bars = {name: sum(v[key] for v in values) / len(values) for name, values in found.items()}
    panels[f"{key} on held-back stories"] = _ours(bars)
    report.finish(asked.out, panels, "nats per token (less is better)")
    return report


def _ours(bars: Mapping[str, float]) -> dict[str, float]:
    return {f"ours: {n}" if n in CLAIMED else n: value for n, value in bars.items()}


def hold(report: Report, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """What is claimed, in every seed: the worst one is held against 1.

    The divergence per token on the student's own answers, KL(student || teacher), is that of the
    whole answers, so it is the one that is compared.
    """

    def worst(name: str, other: str) -> float:
        key = "free KL(s||t)"
        return max(a[key] / b[key] for a, b in zip(found[name], found[other], strict=True))

    for name, other in HELD:
        if name in found and other in found:
            what = f"{name} / {other}, free KL(s||t), worst seed"
            report.at_most(what, worst(name, other), 1.0)


if __name__ == "__main__":
    main()
