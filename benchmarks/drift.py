"""Does a student recover from its own mistakes? Counting, where the data never goes wrong.

A track counts upwards (9 is followed by 0). Where a digit was wrong, the teacher says `_`; behind
that, a track begins anew at 0. The data has clean tracks only, so nothing in it shows what to do
after a wrong digit; on-policy the student comes there by itself.

    python -m benchmarks.drift --seeds 3
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoder
from kd_lightning.distiller import Distiller
from kd_lightning.losses.base import Loss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.models.spec import StudentSpec
from kd_lightning.optim import WarmupCosine
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Example, ModelOutput, Sampling, Signal
from tests.tiny import config, tokenizer

LENGTH = 16
"""Digits of a track."""
ROWS = 64
RESET = "_"
SURE = 0.99
"""Probability that the teacher gives to what is right."""
DRAWN = Sampling(max_new_tokens=LENGTH, temperature=1.0)


class AsTheyAre:
    """A head that takes logits for hidden states."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden


class Counting(Teacher):
    """Knows the rule; `shuffled`: says it at the wrong places, so that it teaches nothing."""

    offers = frozenset({Signal.LOGITS})
    name = "the rule of counting"

    def __init__(self, known: PreTrainedTokenizerBase, shuffled: bool = False) -> None:
        self._known = known
        self._shuffled = torch.Generator().manual_seed(1) if shuffled else None
        digits: Any = known.convert_tokens_to_ids(list("0123456789"))
        self._digits = torch.tensor(digits)
        self._reset = int(known.convert_tokens_to_ids(RESET))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._known

    def materialize(self, device: torch.device) -> None:
        """Nothing to load."""

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        ids = batch.input_ids
        known = len(self._known)
        value = torch.full((known,), -1)
        value[self._digits] = torch.arange(10)
        here = value[ids]
        before = torch.cat([torch.full_like(here[:, :1], -1), here[:, :-1]], 1)
        strange = (here < 0) & (ids != self._reset) & (ids != self._known.bos_token_id)
        wrong = strange | ((before >= 0) & (here >= 0) & (here != (before + 1) % 10))
        after = ids.roll(1, 1) == self._reset
        after[:, 0] = False
        wrong |= after & (here > 0)  # a new track begins at 0
        follows = self._digits[((here + 1) % 10).clamp_min(0)]
        follows = torch.where(ids == self._reset, self._digits[0], follows)
        said = torch.where(wrong, self._reset, follows)
        if self._shuffled is not None:
            where = batch.attention_mask.bool()
            order = torch.randperm(int(where.sum()), generator=self._shuffled)
            said = said.masked_scatter(where, said[where][order])
        logits = torch.full((*ids.shape, known), -30.0)
        allowed = torch.cat([self._digits, torch.tensor([self._reset])])
        rest = torch.tensor((1 - SURE) / 10).log()
        logits[..., allowed] = rest
        logits.scatter_(-1, said[..., None], torch.tensor(SURE).log().item())
        return ModelOutput(logits, AsTheyAre(known))


class Tracks(LightningDataModule):
    """Clean tracks that begin anywhere."""

    skills = ("counting",)

    def __init__(self, steps: int, seed: int, known: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.steps = steps
        self.seed = seed
        self.known = known

    def batches(self) -> Iterator[Batch]:
        draw = random.Random(self.seed)
        encoder, collate = Encoder(self.known), Collate(0, {"counting": 0})
        for step in range(self.steps):
            starts = [draw.randrange(10) for _ in range(ROWS)]
            rows = [
                Example.document(id=f"{step}-{i}", text=track(start), skill="counting")
                for i, start in enumerate(starts)
            ]
            yield collate([encoder.document(row, None) for row in rows])

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(list(self.batches()), batch_size=None)  # type: ignore[arg-type]


def track(start: int, length: int = LENGTH) -> str:
    """Digits of a clean track."""
    return "".join(str((start + i) % 10) for i in range(length))


@dataclass(frozen=True)
class Arm:
    """A way to learn."""

    loss: type[Loss]
    rollout: Rollout | None = None
    shuffled: bool = False


def own() -> FromStudent:
    """The student goes on from a track's first digit."""
    return FromStudent(sampling=DRAWN, document_prompt=1)


ARMS = {
    "off-policy SFT": Arm(CrossEntropy),
    "off-policy forward KL": Arm(ForwardKL),
    "off-policy reverse KL": Arm(ReverseKL),
    "on-policy forward KL": Arm(ForwardKL, own()),
    "on-policy reverse KL": Arm(ReverseKL, own()),
    "GKD 0.5 JSD": Arm(JensenShannon, Mixed(0.5, own())),
    "on-policy forward KL, shuffled teacher": Arm(ForwardKL, own(), shuffled=True),
}


def run(arm: Arm, seed: int, steps: int = 120) -> dict[str, float]:
    """P(reset) after a forced error, KL(teacher || student) there, P(right) before it."""
    with tempfile.TemporaryDirectory() as folder:
        known = tokenizer()
        known.save_pretrained(folder)
        teacher = Counting(known, arm.shuffled)
        torch.manual_seed(seed)
        module = Distiller(
            StudentSpec(config=config(width=48, layers=2), tokenizer=folder),
            arm.loss(),
            teacher,
            rollout=arm.rollout,
            optimizer=partial(torch.optim.AdamW, lr=3e-3),
            scheduler=partial(WarmupCosine, warmup=0.05),
            gradient_clip_norm=1.0,
        )
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, Tracks(steps, seed, known))
    return after_an_error(module, Counting(known))


@torch.no_grad()
def after_an_error(module: Distiller, teacher: Counting) -> dict[str, float]:
    """At the first place behind a wrong digit, for every start, place and wrong digit."""
    encoder = Encoder(teacher.tokenizer)
    rows = []
    for start in range(10):
        for length in (3, 6, 9):
            right = (start + length) % 10
            rows += [track(start, length) + str(d) for d in range(10) if d != right]
    examples = [Example.document(id=str(i), text=f"{text}{RESET}") for i, text in enumerate(rows)]
    batch = Collate(0, {})([encoder.document(e, None) for e in examples])
    last = torch.tensor([n - 1 for n in batch.lengths])
    at = (torch.arange(len(batch)), last)
    module.student.eval()
    student = module.student(batch).logits[at].log_softmax(-1)
    told = teacher.forward(batch, frozenset()).logits[at].log_softmax(-1)
    reset = student[:, teacher._reset].exp().mean()
    known = told.exp() > 1e-6
    kl = torch.where(known, told.exp() * (told - student), 0.0).sum(-1).mean()
    before = student_right(module, batch, teacher, last - 2)
    return {"reset": float(reset), "kl": float(kl), "right": before}


def student_right(module: Distiller, batch: Batch, teacher: Counting, at: Tensor) -> float:
    """P(next digit) on the clean track before the error: saying `_` everywhere is no recovery."""
    where = (torch.arange(len(batch)), at)
    right = teacher.forward(batch, frozenset()).logits[where].argmax(-1)
    student = module.student(batch).logits[where].softmax(-1)
    return float(student.gather(-1, right[:, None]).mean())


def main() -> None:
    """All arms, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--output", type=Path)
    told = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in told.arms:
        found[name] = [run(ARMS[name], seed, told.steps) for seed in range(told.seeds)]
        numbers = [
            f"{r['reset']:.3f} (KL {r['kl']:.2f}, right {r['right']:.2f})" for r in found[name]
        ]
        print(f"{name}: {'  '.join(numbers)}", flush=True)
    if told.output is not None:
        told.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
