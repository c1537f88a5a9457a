"""Ids drawn from the teacher's distribution: few numbers, right on average."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.cache import ids
from kd_lightning.cache.kinds import Asked, Kind, placed
from kd_lightning.cache.layout import Plane, Planes
from kd_lightning.cache.topk import LOWEST, facts, few
from kd_lightning.types import Batch, ModelOutput, SparseTargets

TILES = 8
"""Float32 tensors of a chunk's logits that exist at once: the sums are in float64."""


class Sampled(Kind):
    r"""n ids drawn with replacement; an id's share is an unbiased estimate of its probability.

    .. math:: \hat p_v = \frac{n_v}{n} \frac{p_v}{q_v}, \qquad q_v \propto p_v^t

    at the temperature of the loss. With t = 1 the shares are n_v / n and add up to 1; a smaller t
    draws more of the rare ids, weighted by what they are then worth. Draws are a function of seed
    and row, so a run that goes on draws what an undisturbed one does.

    Source: Anshumann et al. 2025 (random sampling knowledge distillation), arXiv 2503.16870,
    section 3 (there the shares are divided by their sum, which is unbiased for t = 1 only).
    """

    name = "sampled"

    def __init__(
        self,
        vocab: int,
        draws: int = 64,
        proposal: float = 1.0,
        temperatures: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        """`vocab`: ids that the teacher knows; `proposal`: t; one temperature."""
        self.vocab = vocab
        self.draws = draws
        self.proposal = proposal
        self.temperatures = tuple(temperatures)
        self.seed = seed
        self.kept = "<f4" if proposal != 1.0 else "u1" if draws < 256 else "<u2"
        self.planes = (
            *ids.slot_planes(vocab),
            Plane("share", self.kept, "slot"),  # how often drawn; t != 1: log of the share
            Plane("drawn", "<u2"),  # ids of this token
            Plane("label", "<f4"),
            Plane("entropy", "<f4"),
        )

    @property
    def token_bytes(self) -> int:
        slots = min(self.draws, self.vocab)
        each = sum(plane.bytes / plane.every for plane in self.planes if plane.per == "slot")
        return super().token_bytes + round(slots * each)

    def encode(self, asked: Asked) -> tuple[Planes, dict[str, float]]:
        count, device = len(asked.hidden), asked.hidden.device
        numbers = torch.from_numpy(self._numbers(asked.keys, asked.tokens))
        label, entropy = torch.empty(count, device=device), torch.empty(count, device=device)
        found: list[tuple[NDArray[Any], ...]] = []
        for there, z in asked.tiles(TILES):
            z = (z - z.amax(-1, keepdim=True)).clamp_min_(LOWEST)
            label[there], entropy[there] = facts(z, asked.targets[there])
            if (temperature := self.temperatures[0]) != 1.0:  # what a KL of the shares subtracts
                _, entropy[there] = facts(z / temperature, asked.targets[there])
            found.append(self._draw(z, numbers[there].to(device)))
        drawn, chosen, share = (np.concatenate(part) for part in zip(*found, strict=True))
        planes = {
            "ids": chosen,
            "share": share,
            "drawn": drawn.astype("<u2"),
            "label": label.cpu().numpy(),
            "entropy": entropy.cpu().numpy(),
        }
        return planes, {"ids": float(drawn.sum()), "entropy": float(entropy.double().sum())}

    def _numbers(self, keys: Sequence[bytes], tokens: Sequence[int]) -> NDArray[np.float64]:
        """Uniform numbers `[N, draws]`, a function of seed and row."""
        made = []
        for key, count in zip(keys, tokens, strict=True):
            state = hashlib.blake2b(key + self.seed.to_bytes(8, "little"), digest_size=16).digest()
            source = np.random.Generator(np.random.Philox(key=int.from_bytes(state, "little")))
            made.append(source.random((count, self.draws)))
        return np.concatenate(made)

    def _draw(self, z: Tensor, numbers: Tensor) -> tuple[NDArray[Any], ...]:
        """Ids of each token `[C]`, the ids one after the other `[S]`, what each is worth `[S]`."""
        z = z / self.temperatures[0]
        sums = (self.proposal * z).double().softmax(-1).cumsum(-1)
        below = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)
        order = below.clamp_max_(self.vocab - 1).sort(-1).values
        first = torch.ones_like(order, dtype=torch.bool)
        first[:, 1:] = order[:, 1:] != order[:, :-1]
        at = first.flatten().nonzero().squeeze(-1)
        ends = torch.cat([at[1:], at.new_tensor([first.numel()])])
        times = ends - at  # a token's first draw is always a first one, so none spans two tokens
        chosen, token = order.flatten()[at], at // self.draws
        if self.proposal == 1.0:
            share = times.cpu().numpy().astype(self.kept)
        else:
            log_p = z.log_softmax(-1)[token, chosen]
            log_q = (self.proposal * z).log_softmax(-1)[token, chosen]
            share = ((times / self.draws).log() + log_p - log_q).float().cpu().numpy()
        return first.sum(-1).cpu().numpy(), chosen.cpu().numpy(), share

    def cut(self, planes: Planes, tokens: Sequence[int]) -> list[Planes]:
        """A row's slots are filled up, so that the next row's packed ids begin with a byte."""
        planes = dict(planes)
        chosen, share = planes.pop("ids"), planes.pop("share")
        pieces = super().cut(planes, tokens)
        start = 0
        for piece in pieces:
            count = int(piece["drawn"].sum())
            fill = (0, -count % ids.together(self.vocab))
            there = slice(start, start + count)
            piece |= ids.pack(np.pad(chosen[there], fill), self.vocab)
            nothing = 0 if self.proposal == 1.0 else -np.inf
            piece["share"] = np.pad(share[there], fill, constant_values=nothing)
            start += count
        return pieces

    def output(self, planes: Planes, batch: Batch) -> ModelOutput:
        drawn = planes["drawn"].astype(np.int64)
        flat_ids = ids.unpack(planes, self.vocab)
        worth = planes["share"]
        if self.proposal == 1.0:
            with np.errstate(divide="ignore"):  # slots that fill up a row were drawn 0 times
                worth = np.log(worth.astype(np.float32) / np.float32(self.draws))
        used = np.flatnonzero(worth > -np.inf)
        width = int(drawn.max()) if len(drawn) else 1
        token = np.repeat(np.arange(len(drawn)), drawn)
        slot = np.arange(len(token)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        chosen = np.zeros((len(drawn), width), np.int64)
        logits = np.full((len(drawn), width), -np.inf, np.float32)
        chosen[token, slot] = flat_ids[used]
        logits[token, slot] = worth[used]
        targets = SparseTargets(
            ids=placed(chosen, batch),
            logits=placed(logits, batch),
            lse={t: placed(np.zeros(len(drawn), np.float32), batch) for t in self.temperatures},
            label=placed(planes["label"], batch),
            entropy=placed(planes["entropy"], batch),
            vocab=self.vocab,
            support="sampled",
        )
        return few(targets, batch)
