"""Counting tracks: data that never goes wrong, and a teacher who knows what to say where it does.

A track counts upwards (9 is followed by 0) and begins anywhere. Behind a digit that is wrong the
teacher says `_`, and behind that a track begins anew at 0. The data has clean tracks only, so
nothing in it shows what to do behind a wrong digit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoder
from kd_lightning.models.causal import CausalLM
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Example, ModelOutput, Signal

LENGTH = 16
"""Digits of a track."""
ROWS = 64
"""Tracks of a batch."""
RESET = "_"
SURE = 0.99
"""Probability that the teacher gives to what is right; the ten others share the rest."""
NEVER = -30.0
"""Logit of words that are neither digits nor the reset."""


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
        self.reset = int(known.convert_tokens_to_ids(RESET))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._known

    def materialize(self, device: torch.device) -> None:
        """Nothing to load."""

    def said(self, ids: Tensor) -> Tensor:
        """What is right behind each place, `[B, T]` ids; behind the beginning: any digit."""
        value = torch.full((len(self._known),), -1)
        value[self._digits] = torch.arange(10)
        here = value[ids]
        before = torch.cat([torch.full_like(here[:, :1], -1), here[:, :-1]], 1)
        wrong = (here < 0) & (ids != self.reset) & (ids != self._known.bos_token_id)
        wrong |= (before >= 0) & (here >= 0) & (here != (before + 1) % 10)
        after = ids.roll(1, 1) == self.reset
        after[:, 0] = False
        wrong |= after & (here > 0)  # a new track begins at 0
        follows = self._digits[((here + 1) % 10).clamp_min(0)]
        follows = torch.where(ids == self.reset, self._digits[0], follows)
        return torch.where(wrong, self.reset, follows)

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        ids, known = batch.input_ids, len(self._known)
        said = self.said(ids)
        if self._shuffled is not None:
            where = batch.attention_mask.bool()
            order = torch.randperm(int(where.sum()), generator=self._shuffled)
            said = said.masked_scatter(where, said[where][order])
        allowed = torch.cat([self._digits, torch.tensor([self.reset])])
        logits = torch.full((*ids.shape, known), NEVER)
        logits[..., allowed] = torch.tensor((1 - SURE) / (len(allowed) - 1)).log()
        logits.scatter_(-1, said[..., None], torch.tensor(SURE).log().item())
        anywhere = torch.full((known,), NEVER)
        anywhere[self._digits] = torch.tensor(0.1).log()
        logits[ids == self._known.bos_token_id] = anywhere
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
        """One for each step."""
        draw = random.Random(self.seed)
        encoder, collate = Encoder(self.known), Collate(0, {"counting": 0})
        for step in range(self.steps):
            texts = [track(draw.randrange(10)) for _ in range(ROWS)]
            rows = [
                Example.document(id=f"{step}-{i}", text=text, skill="counting")
                for i, text in enumerate(texts)
            ]
            yield collate([encoder.document(row, None) for row in rows])

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(list(self.batches()), batch_size=None)  # type: ignore[arg-type]


def track(start: int, length: int = LENGTH) -> str:
    """Digits of a clean track."""
    return "".join(str((start + i) % 10) for i in range(length))


@torch.no_grad()
def after_an_error(student: CausalLM, teacher: Counting) -> dict[str, float]:
    """Of tracks in which one digit was replaced: every start, three places, every wrong digit.

    `reset`: the student's probability of the reset behind the wrong digit; `kl`: KL(teacher ||
    student) there; `right`: its probability of the right digit in the place of the wrong one, since
    a student that says `_` everywhere recovers from nothing.
    """
    texts = [
        track(start, length) + str(digit)
        for start in range(10)
        for length in (3, 6, 9)
        for digit in range(10)
        if digit != (start + length) % 10
    ]
    encoder = Encoder(teacher.tokenizer)
    examples = [Example.document(id=str(i), text=t + RESET) for i, t in enumerate(texts)]
    batch = Collate(0, {})([encoder.document(example, None) for example in examples])
    rows, wrong = torch.arange(len(batch)), torch.tensor([n - 1 for n in batch.lengths])
    student.eval()
    log_q = student(batch).logits.float().log_softmax(-1)
    log_p = teacher.forward(batch, frozenset()).logits.log_softmax(-1)
    behind, told = log_q[rows, wrong], log_p[rows, wrong]
    right = teacher.said(batch.input_ids)[rows, wrong - 1]
    return {
        "reset": float(behind[:, teacher.reset].exp().mean()),
        "kl": float((told.exp() * (told - behind)).sum(-1).mean()),
        "right": float(log_q[rows, wrong - 1, right].exp().mean()),
    }
