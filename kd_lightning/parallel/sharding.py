"""A model spread over processes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from kd_lightning.models.causal import CausalLM
from kd_lightning.models.layers import decoder_layers
from kd_lightning.models.loading import DTYPES
from kd_lightning.models.placement import Placement


@dataclass(frozen=True)
class Sharding:
    """How one model is spread over the processes."""

    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which weights are gathered and multiplied; auto: the student's bfloat16 under
    trainer.precision=bf16-mixed, otherwise as they are stored."""
    reduce: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are added up over processes."""
    reshard_after_forward: bool = True
    """Give a layer's gathered weights back after its forward; false: keep them for the backward
    pass, which saves one of two gathers and costs the whole model's memory."""
    cpu_offload: bool = False
    """Keep shards (and the optimizer's state) in host memory while they are not computed with."""
    generate: Literal["gathered", "sharded"] = "gathered"
    """While text is generated: all layers gathered once, or each anew at every token (where the
    whole model does not fit on a device)."""


def shard(model: CausalLM, how: Sharding, mesh: DeviceMesh, compute: torch.dtype | None) -> None:
    """Spread a model over `mesh` (1 dimension; 2: replicas, shards) where it stands.

    One group of weights for each decoder layer, one for the embedding, and one for the rest with
    the model as root: the head is whole inside the model's own forward, and of a model without
    backward pass also after it. Quantised weights are not split but kept whole.

    Source: Zhao et al. 2023, arXiv 2304.11277, section 3; sharding: Rajbhandari et al. 2019 (ZeRO
    stage 3), arXiv 1910.02054, section 5.3.

    Args:
        model: On any device; its shards go to the mesh's.
        how: The settings.
        mesh: The processes.
        compute: Type of gathered weights; None: as they are stored.
    """
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=None if compute is None else DTYPES[how.reduce]
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
        if how.cpu_offload
        else OffloadPolicy(),
        "ignored_params": {p for p in model.parameters() if not p.is_floating_point()},
    }
    groups = dict.fromkeys(decoder_layers(model.transformer), how.reshard_after_forward)
    embedding: Any = model.transformer.get_input_embeddings()
    head: Any = model.transformer.get_output_embeddings()
    if head.weight is not embedding.weight and type(embedding) is nn.Embedding:
        groups[embedding] = True
    for group, reshard in groups.items():
        fully_shard(group, reshard_after_forward=reshard, **settings)
    fully_shard(model, **settings)
    register_fsdp_forward_method(model, "complete")
    register_fsdp_forward_method(model, "at_hand")
    whole = how.generate == "gathered"
    around = partial(gathered, groups)
    device = torch.device(mesh.device_type)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    model.placement = (
        Placement(device, around, in_step=False) if whole else Placement(device, in_step=True)
    )


@contextmanager
def gathered(groups: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Groups whole for a while; a collective call. No backward pass inside.

    `groups`: each with whether it is given back after its forward otherwise.
    """
    sharded = [(g, reshard) for g, reshard in groups.items() if isinstance(g, FSDPModule)]
    for group, _ in sharded:
        group.unshard()
        group.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for group, reshard in sharded:
            group.set_reshard_after_forward(reshard, recurse=False)
            group.reshard()


def give_back(module: nn.Module) -> None:
    """Shards in place of whatever is still gathered, so that `parameters()` are the shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
