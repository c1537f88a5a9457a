"""Log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kd_lightning.models.causal import CausalLM
from kd_lightning.models.modes import evaluating
from kd_lightning.types import IGNORE, Batch

CHUNK = 512
"""Positions whose logits exist at once."""


@dataclass(frozen=True)
class Row:
    """A text as ids, and what is asked about it."""

    ids: tuple[int, ...]
    wanted: tuple[tuple[int, int], ...]
    """(position, token): log p(token | ids up to and with the position)."""


@torch.no_grad()
def logprobs(model: CausalLM, rows: Sequence[Row]) -> list[list[float]]:
    r"""What is wanted of each row, in nats; one batch, over the ids that the tokenizer knows.

    .. math:: \log p(v \mid y_{\le t}) = z_{t,v} - \log \sum_w e^{z_{t,w}}
    """
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    zero = torch.zeros(len(rows), dtype=torch.long)
    batch = Batch(ids, mask, torch.full_like(ids, IGNORE), torch.zeros(shape), zero, zero)
    output = model(batch.to(model.device))
    flat = [(i, at, token) for i, row in enumerate(rows) for at, token in row.wanted]
    where = torch.tensor([[i, at] for i, at, _ in flat], device=model.device).reshape(-1, 2)
    tokens = torch.tensor([token for *_, token in flat], device=model.device)
    found: list[float] = []
    for start in range(0, len(flat), CHUNK):
        part = where[start : start + CHUNK]
        logits = output.head(output.hidden[part[:, 0], part[:, 1]])[:, : output.head.vocab].float()
        chosen = logits.gather(1, tokens[start : start + CHUNK, None])[:, 0]
        found += (chosen - logits.logsumexp(-1)).tolist()
    told = iter(found)
    return [[next(told) for _ in row.wanted] for row in rows]


def scored_answers(
    model: CausalLM, answers: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int = 64
) -> list[list[float]]:
    """What is said of each token of answers (prompt, answer); evaluation mode, `rows` at a time."""
    asked = []
    for prompt, answer in answers:
        first = len(prompt) - 1
        asked.append(
            Row((*prompt, *answer), tuple((first + i, token) for i, token in enumerate(answer)))
        )
    found: list[list[float]] = []
    with evaluating(model):
        for start in range(0, len(asked), rows):
            found += logprobs(model, asked[start : start + rows])
    return found
