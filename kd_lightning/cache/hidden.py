"""The teacher's last hidden states: with its head, the whole distribution at any temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kd_lightning import files
from kd_lightning.cache.kinds import Asked, Kind, placed
from kd_lightning.cache.layout import Plane, Planes
from kd_lightning.errors import KDError
from kd_lightning.kernels.projection import Projection
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import IGNORE, Batch, Head, ModelOutput

HEAD = "head.safetensors"


class Hidden(Kind):
    r"""Hidden states after the final norm, rounded; int8 with a scale per token.

    .. math:: h \approx s \, \mathrm{round}(h / s), \qquad s = \max_d |h_d| / 127
    """

    name = "hidden"

    def __init__(
        self,
        vocab: int,
        width: int,
        dtype: Literal["bfloat16", "int8", "float32"] = "bfloat16",
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        """`width`: D; `scale`, `softcap`: what the head does after its product."""
        self.vocab = vocab
        self.width = width
        self.dtype = dtype
        self.scale = scale
        self.softcap = softcap
        self.head: LinearHead | None = None
        stored = {"bfloat16": "<u2", "int8": "i1", "float32": "<f4"}[dtype]
        states = Plane("states", stored, width=(width,))
        self.planes = (states, Plane("scale", "<f4")) if dtype == "int8" else (states,)

    def encode(self, asked: Asked) -> tuple[Planes, dict[str, float]]:
        states = asked.hidden.float()
        if self.dtype == "float32":
            return {"states": states.cpu().numpy()}, {}
        if self.dtype == "bfloat16":
            rounded = states.bfloat16().cpu().view(torch.int16).numpy()
            return {"states": rounded.view("<u2")}, {}
        scale = states.abs().amax(-1).div_(127).clamp_min_(1e-30)
        steps = (states / scale[:, None]).round_().to(torch.int8)
        return {"states": steps.cpu().numpy(), "scale": scale.cpu().numpy()}, {}

    def output(self, planes: Planes, batch: Batch) -> ModelOutput:
        assert self.head is not None, "load_head before the first batch"
        weight: Any = self.head.linear.weight
        states = self._decoded(planes, batch).to(weight.dtype)
        hidden = states.new_zeros((*batch.targets.shape, self.width))
        hidden[batch.targets != IGNORE] = states
        return ModelOutput(hidden, self.head)

    def _decoded(self, planes: Planes, batch: Batch) -> Tensor:
        states = planes["states"]
        if self.dtype == "bfloat16":
            return placed(states.view("<i2"), batch).view(torch.bfloat16)
        if self.dtype == "int8":
            return placed(states, batch).float() * placed(planes["scale"], batch)[:, None]
        return placed(states, batch)

    def load_head(self, folder: Path, device: torch.device) -> None:
        """The head that was written beside the shards."""
        held = load_file(folder / HEAD)
        weight = held["weight"]
        rows, width = weight.shape
        linear = nn.Linear(width, rows, bias="bias" in held, device="meta")
        linear.load_state_dict(held, assign=True)
        linear = linear.to(device).requires_grad_(False)
        self.head = LinearHead(linear, self.vocab, self.scale, self.softcap, own_precision=True)


def write_head(folder: Path, head: Head) -> dict[str, str]:
    """The head's tensors, once; the file's checksum by its name."""
    plain = plain_head(head)
    held = {"weight": plain.weight.detach().cpu().contiguous()}
    if plain.bias is not None:
        held["bias"] = plain.bias.detach().cpu().contiguous()
    return {HEAD: files.write(folder / HEAD, [save(held)])}


def plain_head(head: Head) -> Projection:
    """The head as tensors, or a sentence that says what to do without."""
    read = getattr(head, "projection", None)
    plain = None if read is None else read()
    if not isinstance(plain, Projection):
        raise KDError(
            "this teacher's head is more than a linear layer (quantised or adapted), so its hidden "
            "states cannot be cached: write --kind=topk"
        )
    return plain
