"""Does a student recover from its own mistakes? Counting (benchmarks/tracks.py).

All arms go on from one start, a student that learned clean tracks by forward KL. On-policy it comes
to wrong digits by itself (drawn at temperature 2 from a track's first digit: no error is put in);
off-policy it never sees one. At temperature 1 a student that is right in 99 of 100 places seldom
errs, and losses that seek modes (reverse KL, JSD) hardly find the reset: it gives it 0.0003.

    python -m benchmarks.drift --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from benchmarks.tracks import LENGTH, Counting, Tracks, after_an_error
from kd_lightning.distiller import Distiller
from kd_lightning.losses.base import Loss
from kd_lightning.losses.contrastive_skew import ContrastiveSkew
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.skew import SkewForwardKL
from kd_lightning.models.causal import build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.beside import Beside
from kd_lightning.rollouts.from_data import FromData
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.types import Sampling
from tests.tiny import config, tokenizer

DRAWN = Sampling(max_new_tokens=LENGTH - 1, temperature=2.0)
GIVEN = 2
"""Of a track on-policy: the beginning and the first digit."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    start_steps: int = 100
    steps: int = 600
    rate: float = 3e-3


@dataclass(frozen=True)
class Arm:
    """A way to learn."""

    loss: type[Loss]
    rollout: Rollout | None = None
    shuffled: bool = False


def own() -> FromStudent:
    """The student goes on from a track's first digit."""
    return FromStudent(sampling=DRAWN, document_prompt=GIVEN)


def both() -> Beside:
    """The tracks of the data, and the student's own."""
    return Beside([FromData(), own()])


ARMS = {
    "off-policy SFT": Arm(CrossEntropy),
    "off-policy forward KL": Arm(ForwardKL),
    "off-policy reverse KL": Arm(ReverseKL),
    "on-policy forward KL": Arm(ForwardKL, own()),
    "on-policy reverse KL": Arm(ReverseKL, own()),
    "GKD 0.5 JSD": Arm(JensenShannon, Mixed(0.5, own())),
    "off-policy skew KL": Arm(SkewForwardKL),
    "DistiLLM-2": Arm(ContrastiveSkew, both()),
    "DistiLLM-2, shuffled teacher": Arm(ContrastiveSkew, both(), shuffled=True),
    "on-policy forward KL, shuffled teacher": Arm(ForwardKL, own(), shuffled=True),
}


def trained(
    spec: StudentSpec, arm: Arm, seed: int, steps: int, rate: float, folder: Path
) -> Distiller:
    """The student behind one run."""
    known = tokenizer()
    torch.manual_seed(seed)
    module = Distiller(
        spec,
        arm.loss(),
        Counting(known, arm.shuffled),
        rollout=arm.rollout,
        optimizer=partial(torch.optim.AdamW, lr=rate),
        scheduler=partial(WarmupCosine, warmup=0.05),
        gradient_clip_norm=1.0,
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, Tracks(steps, seed, known))
    return module


def begun(seed: int, size: Size, folder: Path) -> None:
    """The start of all arms, in a folder: behind some steps on the data, or untrained."""
    tokenizer().save_pretrained(folder)
    spec = StudentSpec(config=config(width=48, layers=2), tokenizer=str(folder))
    torch.manual_seed(seed)
    if size.start_steps:
        made = trained(spec, Arm(ForwardKL), seed, size.start_steps, size.rate, folder).student
    else:
        made = build_student(spec, tokenizer())
    made.save(folder)


def measure(seed: int, arms: Sequence[str], size: Size) -> dict[str, dict[str, float]]:
    """The arms of a seed, and the `start` that they go on from."""
    teacher = Counting(tokenizer())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun(seed, size, folder)
        spec = StudentSpec(path=name)
        found = {"start": after_an_error(build_student(spec, teacher.tokenizer), teacher)}
        for arm in arms:
            made = trained(spec, ARMS[arm], 100 + seed, size.steps, size.rate, folder)
            found[arm] = after_an_error(made.student, teacher)
            print(seed, arm, found[arm], flush=True)
    return found


def main() -> None:
    """All arms, seed by seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--start-steps", type=int, default=Size.start_steps)
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--rate", type=float, default=Size.rate)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    told = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(told.start_steps, told.steps, told.rate)
    every = [measure(seed, told.arms, size) for seed in told.seeds]
    print("| arm | P(reset) behind a wrong digit | KL there | P(right) in its place |")
    print("|---|---|---|---|")
    for name in every[0]:
        columns = [
            " ".join(f"{found[name][key]:.3f}" for found in every)
            for key in ("reset", "kl", "right")
        ]
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
