"""The decoder layers of a model: what is cut, compiled, recomputed and sharded one by one."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from kd_lightning.errors import KDError


def layer_list(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the model's layers, and under which name."""
    total = int(model.config.get_text_config().num_hidden_layers)
    for module in model.base_model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                return module, name
    raise KDError(
        f"cannot find the {total} layers of {type(model).__name__}: write `layers: null`, and no "
        "compile, no selective checkpointing and no sharding"
    )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The model's layers, first to last."""
    holder, name = layer_list(model)
    return list(getattr(holder, name))


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer for itself: one graph serves all layers, and sharding stays outside."""
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
