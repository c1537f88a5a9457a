"""Digests by which a cache and a training know that they speak of the same things."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kd_lightning.data.mixture import Mixture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kd_lightning.data.base import KDDataModule
    from kd_lightning.data.encoding import Encoded

PLAIN_TEXT = "plain text"
"""In place of a template's digest where rows are documents."""

DATA_SETTINGS = ("max_length", "truncation", "template", "template_arguments", "system")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary and the ids that begin and end texts."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return _of([sorted(tokenizer.get_vocab().items()), special])


def template_digests(data: KDDataModule, split: str) -> set[str]:
    """Of the templates that the rows of a split were rendered with."""
    if isinstance(data, Mixture):
        parts = (template_digests(part.data, split) for part in data.parts.values())
        return set().union(*parts)
    found = set()
    kinds = {row.example.plain for row in data.encoded(split)}
    if True in kinds:
        found.add(PLAIN_TEXT)
    if False in kinds:
        found.add(_of([data.encoder.template.source, data.template_arguments or {}]))
    return found


def data_digest(rows: Iterable[Encoded]) -> str:
    """Of the rows' keys, in order."""
    digest = sha256()
    for row in rows:
        digest.update(row.key)
    return digest.hexdigest()


def data_settings(data: KDDataModule) -> dict[str, Any]:
    """What the rows depend on besides their source."""
    if isinstance(data, Mixture):
        return {name: data_settings(part.data) for name, part in data.parts.items()}
    settings = {name: getattr(data, name) for name in DATA_SETTINGS}
    return {"module": type(data).__name__, "paths": dict(data.splits.paths), **settings}


def weights_digest(model: nn.Module) -> str:
    """Of every tensor of a model: name, type, shape and bytes."""
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().contiguous().flatten().view(torch.uint8)
        digest.update(flat.cpu().numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def _of(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
