"""Answers to a few prompts, what is known of them, and their log-probabilities in plain loops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.types import IGNORE, Batch, Source
from tests.losses.kit import Toy

NAN = float("nan")
VOCAB = 11


def answers(lengths, prompts, group, reward, seed=0, vocab=VOCAB):
    """Rows of `lengths` tokens whose first `prompts` targets are not learned; padded."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    ids = torch.randint(0, vocab, (rows, width), generator=generator)
    targets = torch.randint(0, vocab, (rows, width), generator=generator)
    place = torch.arange(width)[None]
    mask = (place < torch.tensor(lengths)[:, None]).long()
    learned = (mask == 1) & (place >= torch.tensor(prompts)[:, None])
    return Batch(
        input_ids=ids * mask,
        attention_mask=mask,
        targets=targets.masked_fill(~learned, IGNORE),
        weights=learned.float(),
        source=torch.full((rows,), int(Source.STUDENT)),
        skill=torch.zeros(rows, dtype=torch.long),
        group=torch.tensor(group),
        reward=torch.tensor(reward),
    )


def log_sigmoid(x):
    return -torch.log1p(torch.exp(-x))


def ranked(seed=0):
    """A group of four, a pair, one answer alone; an answer that nobody judged."""
    return answers(
        lengths=[7, 3, 6, 4, 8, 5, 2, 6],
        prompts=[2, 1, 3, 1, 2, 0, 1, 2],
        group=[3, 3, 3, 3, 1, 1, 7, 7],
        reward=[0.5, 2.0, -1.0, 0.75, 0.0, 1.0, 0.25, NAN],
        seed=seed,
    )


def models():
    """A student, and a frozen reference."""
    return Toy(0, width=4), Toy(1, width=6).requires_grad_(False)


@dataclass
class Row:
    """One answer, in numbers."""

    group: int
    reward: float
    words: list[Tensor]  # student's log p of each word
    fixed: list[Tensor]  # the reference's
    places: list[int]

    @property
    def logp(self) -> Tensor:
        return torch.stack(self.words).sum()

    @property
    def ratio(self) -> Tensor:
        return self.logp - torch.stack(self.fixed).sum()

    @property
    def mean(self) -> Tensor:
        return self.logp / len(self.words)

    @property
    def judged(self) -> bool:
        return self.reward == self.reward


def read(student, reference, batch) -> list[Row]:
    """Every row, word by word from whole logits."""
    mine = student(batch).logits.log_softmax(-1)
    other = reference(batch).logits.log_softmax(-1)
    rows = []
    for i in range(len(batch)):
        places = [t for t, y in enumerate(batch.targets[i].tolist()) if y != IGNORE]
        label = batch.targets[i].tolist()
        rows.append(
            Row(
                int(batch.group[i]),
                float(batch.reward[i]),
                [mine[i, t, label[t]] for t in places],
                [other[i, t, label[t]] for t in places],
                places,
            )
        )
    return rows


def by_group(rows) -> list[list[Row]]:
    """Judged rows of each group, best first."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.judged:
            found.setdefault(row.group, []).append(row)
    return [sorted(group, key=lambda r: -r.reward) for group in found.values()]


def compare(loss, golden, batch, reference_needed=True):
    """Value and gradient of a loss against a formula, to 1e-9 in double precision."""
    student, teacher = models()
    output = loss(student(batch), teacher(batch), batch)
    counts = loss.count(batch)
    got = sum(term / counts[name] for name, term in output.terms.items())
    want = golden(read(student, teacher, batch))
    assert abs(want.item()) > 1e-4
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    slopes = torch.autograd.grad(got, list(student.parameters()))
    right = torch.autograd.grad(want, list(student.parameters()))
    assert max(s.abs().max() for s in right) > 1e-4
    for slope, wanted in zip(slopes, right, strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-9)
