"""The k likeliest ids with their logits, and what is needed to know the rest's mass exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd_lightning.cache import ids
from kd_lightning.cache.kinds import Asked, Kind, placed
from kd_lightning.cache.layout import Plane, Planes
from kd_lightning.errors import KDError
from kd_lightning.types import Batch, ModelOutput, SparseTargets, Support

LOWEST = -1e30
"""In place of -inf, so that 0 times a logit is 0."""


class TopK(Kind):
    r"""k ids with logits as differences to the largest one, and a log-sum-exp per temperature.

    .. math:: L_T = \log\Big(\sum_{v \in K} e^{\tilde z_v / T} + \sum_{v \notin K} e^{z_v / T}\Big)

    with the kept logits as they are rounded. So the shares of the k ids and the mass of the rest,
    1 - sum exp(z/T - L_T), belong to one distribution at every stored temperature; the sum over
    the rest of p^(1/T) could not be had from its mass at temperature 1.
    """

    name = "topk"

    def __init__(
        self,
        vocab: int,
        k: int = 64,
        temperatures: Sequence[float] = (1.0, 2.0),
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        """`vocab`: ids that the teacher knows; `temperatures`: 1 among them."""
        self.vocab = vocab
        self.k = min(k, vocab)
        self.temperatures = tuple(temperatures)
        self.dtype = np.dtype(dtype)
        self.support: Support = "tail"
        self.planes = (
            *ids.planes(vocab, self.k),
            Plane("logits", self.dtype.newbyteorder("<").str, width=(self.k,)),
            Plane("lse", "<f4", width=(len(self.temperatures),)),
            Plane("label", "<f4"),
            Plane("entropy", "<f4"),
        )

    def encode(self, asked: Asked) -> tuple[Planes, dict[str, float]]:
        count, device = len(asked.hidden), asked.hidden.device
        chosen = torch.empty(count, self.k, dtype=torch.int64, device=device)
        logits = torch.empty(count, self.k, device=device)
        rest = torch.empty(count, len(self.temperatures), device=device)
        label, entropy = torch.empty(count, device=device), torch.empty(count, device=device)
        for there, z in asked.tiles():
            z = (z - z.amax(-1, keepdim=True)).clamp_min_(LOWEST)
            label[there], entropy[there] = facts(z, asked.targets[there])
            logits[there], chosen[there] = z.topk(self.k)
            z.scatter_(1, chosen[there], -torch.inf)
            for i, temperature in enumerate(self.temperatures):
                rest[there, i] = (z / temperature).exp_().sum(-1)
        with np.errstate(over="ignore"):  # what is beyond float16 is impossible: -inf
            kept = logits.cpu().numpy().astype(self.dtype)
        told = torch.from_numpy(kept.astype(np.float32))
        mass = [(told / t).exp().sum(-1) for t in self.temperatures]
        lse = (torch.stack(mass, 1) + rest.cpu()).log()
        planes = {
            **ids.pack(chosen.cpu().numpy(), self.vocab),
            "logits": kept,
            "lse": lse.numpy(),
            "label": label.cpu().numpy(),
            "entropy": entropy.cpu().numpy(),
        }
        one = self.temperatures.index(1.0)
        tail = -torch.expm1(mass[one].log() - lse[:, one]).double().sum()
        return planes, {"tail": float(tail), "entropy": float(entropy.double().sum())}

    def output(self, planes: Planes, batch: Batch) -> ModelOutput:
        lse = placed(planes["lse"], batch)
        targets = SparseTargets(
            ids=placed(ids.unpack(planes, self.vocab), batch),
            logits=placed(planes["logits"], batch).float(),
            lse={t: lse[:, i] for i, t in enumerate(self.temperatures)},
            label=placed(planes["label"], batch),
            entropy=placed(planes["entropy"], batch),
            vocab=self.vocab,
            support=self.support,
        )
        return few(targets, batch)


def facts(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the target and entropy, `[C]`, of logits `[C, V]` whose largest is 0."""
    e = z.exp()
    total = e.sum(-1)
    label = z.gather(-1, targets[:, None]).squeeze(-1) - total.log()
    return label, total.log() - e.mul_(z).sum(-1) / total


class NoHead:
    """Stands where a head would: a few ids cannot be made into logits of all."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, hidden: Tensor) -> Tensor:
        raise KDError(
            "the teacher's cache holds a few ids a token, and all logits are asked for: write a "
            "cache of hidden states (python train.py cache --kind=hidden) or use the live teacher"
        )


def few(targets: SparseTargets, batch: Batch) -> ModelOutput:
    """A few ids as the output of a model without states."""
    nothing = batch.weights.new_empty((*batch.targets.shape, 0))
    return ModelOutput(nothing, NoHead(targets.vocab), sparse=targets)
