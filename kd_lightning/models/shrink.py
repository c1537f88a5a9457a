"""A student cut out of its teacher: fewer of the same layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from kd_lightning.errors import KDError
from kd_lightning.models.layers import layer_list


def chosen_layers(total: int, layers: int | list[int], keep: str) -> list[int]:
    """Indices of the layers that stay, in order.

    `even` spreads n layers from the first to the last, as DistilBERT and its successors take every
    k-th one. Source: Sanh et al. 2019, arXiv 1910.01108, section 3.
    """
    if isinstance(layers, list):
        wrong = [i for i in layers if not 0 <= i < total]
        if wrong or not layers or layers != sorted(set(layers)):
            raise KDError(
                f"model.student.layers={layers} must be increasing indices from 0 to {total - 1}"
            )
        return layers
    if not 1 <= layers <= total:
        raise KDError(f"model.student.layers={layers}: the model has {total} layers to keep from")
    if keep == "first":
        return list(range(layers))
    if keep == "last":
        return list(range(total - layers, total))
    if layers == 1:
        return [total - 1]
    return [round(i * (total - 1) / (layers - 1)) for i in range(layers)]


def keep_layers(model: PreTrainedModel, layers: int | list[int], keep: str) -> PreTrainedModel:
    """Remove the other layers in place; the configuration follows."""
    config = model.config.get_text_config()
    total = int(config.num_hidden_layers)
    holder, name = layer_list(model)
    stay = chosen_layers(total, layers, keep)
    old = getattr(holder, name)
    setattr(holder, name, nn.ModuleList(old[i] for i in stay))
    for new, layer in enumerate(getattr(holder, name)):
        for part in layer.modules():  # the cache addresses layers by this number
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = new
    config.num_hidden_layers = len(stay)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = [config.layer_types[i] for i in stay]
    return model
