"""Rows that were answered, and a teacher that says what it is told to."""

from __future__ import annotations

import torch

from kd_lightning.rewards.base import Around
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.generator import Kind, Reply
from kd_lightning.types import IGNORE, Batch, Completion, Example, Signal


def batch_of(prompts, group=None, fillers=0, words=2, **more):
    """A row for each prompt, of which `words` tokens are the answer; then fillers."""
    rows = len(prompts) + fillers
    ids = torch.ones(rows, 4, dtype=torch.long)
    targets = torch.full((rows, 4), IGNORE)
    targets[: len(prompts), 4 - words :] = 1
    zero = torch.zeros(rows, dtype=torch.long)
    examples = tuple(
        p if isinstance(p, Example) else Example.dialogue(id=f"r{i}", user=p, assistant="gold")
        for i, p in enumerate(prompts)
    )
    return Batch(
        ids, torch.ones_like(ids), targets, (targets != IGNORE).float(), zero, zero,
        ids=tuple(e.id for e in examples) + ("",) * fillers, examples=examples,
        group=None if group is None else torch.tensor(group), **more,
    )  # fmt: skip


class Says(Teacher):
    """Text, or log-probabilities of options, as functions of the last turn; None: a failure."""

    offers = frozenset({Signal.TEXT, Signal.LOGPROB})
    name = "says"
    tokenizer = None

    def __init__(self, text=None, choices=None, error=None):
        self.text, self.choices, self.error = text, choices, error
        self.asked = []

    def materialize(self, device):
        pass

    def replies(self, requests):
        if self.error is not None:
            raise self.error
        for i, request in enumerate(requests):
            self.asked.append(request)
            last = request.prompt.messages[-1].content
            if request.kind is Kind.CHOICES:
                told = self.choices(last)
                yield [(i, Reply(failure="lost") if told is None else Reply(choices=tuple(told)))]
                continue
            said = self.text(last)
            done = Completion((said or "").removesuffix("…"), (), not (said or "").endswith("…"))
            yield [(i, Reply(failure="lost") if said is None else Reply(completions=(done,)))]


def checked(reward, teacher=None, data=None):
    """After set-up."""
    reward.check(Around(teacher, data))
    reward.materialize(torch.device("cpu"))
    return reward
