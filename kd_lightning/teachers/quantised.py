"""How far a teacher in few bits is from itself in full."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.types import IGNORE, Batch

TEXTS = (
    "The river had risen in the night, and by morning the bridge was closed. Nobody in the village "
    "could remember such a flood; the old people said that it came every hundred years.",
    "Question: A train leaves at 9:40 and arrives at 11:15. How long does the journey take?\n"
    "Answer: From 9:40 to 11:00 it is 80 minutes, and 15 more make 95 minutes.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "Water boils at a lower temperature on a mountain because the air presses less on it. That is "
    "why an egg takes longer to cook there.",
    "Once upon a time there was a little cat who was afraid of the dark. One day she met a dog. "
    '"Do not be afraid," said the dog. "I will stay with you."',
    "The committee approved the budget by a vote of seven to two. The new school is to be opened "
    "in September, and the library will follow a year later.",
)
"""Prose, a calculation, a program: what a teacher in full and in few bits is compared on."""

MOST = 96
"""Tokens of a text that are used."""


def probe(model: CausalLM) -> Batch:
    """The texts as one batch, where the model computes."""
    rows = [model.tokenizer(text)["input_ids"][:MOST] for text in TEXTS]
    shape = (len(rows), max(map(len, rows)))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    zero = torch.zeros(len(rows), dtype=torch.long)
    targets, weights = torch.full(shape, IGNORE), torch.zeros(shape)
    return Batch(ids, mask, targets, weights, zero, zero).to(model.device)


@torch.no_grad()
def log_probabilities(model: CausalLM) -> Tensor:
    """What the model says after each token of the texts `[N, V]`, on the CPU in float32."""
    batch = probe(model)
    output = model.eval()(batch)
    states = output.hidden[batch.attention_mask.bool()]
    logits: Tensor = output.head(states)[:, : output.head.vocab]
    return logits.float().log_softmax(-1).cpu()


def full(load: Callable[[], CausalLM], device: torch.device) -> Tensor:
    """What the teacher in full says; it is on the device for a moment only."""
    try:
        found = log_probabilities(load().to(device))
    except torch.OutOfMemoryError as error:
        raise KDError(
            f"the teacher in full does not fit on {device}, not even to be compared with the "
            "quantised one: write model.teacher.quantization_limit=null"
        ) from error
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def divergence(full: Tensor, quantised: Tensor) -> float:
    r"""How much is lost, in nats per token.

    .. math:: \frac{1}{N} \sum_n \sum_v p_n(v) \log \frac{p_n(v)}{\hat p_n(v)}
    """
    return float((full.exp() * (full - quantised)).sum(-1).mean())


def compare(full: Tensor, quantised: CausalLM, kind: str, limit: float) -> float:
    """Say how far the quantised teacher is from the full one, and refuse it beyond the limit."""
    found = divergence(full, log_probabilities(quantised))
    rank_zero_info(
        f"teacher in {kind}: KL(full || quantised) = {found:.4f} nats per token "
        f"({len(full)} tokens)"
    )
    if not found <= limit:
        raise KDError(
            f"the teacher in {kind} is {found:.4f} nats per token away from itself in full, and "
            f"model.teacher.quantization_limit is {limit:g}: choose another "
            "model.teacher.quantization, or raise the limit (null: do not compare)"
        )
    return found
