"""Answers that outlive their step: the same on all ranks, and plain data in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch.distributed as dist

from kd_lightning.rollouts.answers import Answer
from kd_lightning.types import Completion, Example, Message, Source

T = TypeVar("T")


def from_all_ranks(own: list[T]) -> list[T]:
    """Every rank's items, in the order of ranks; a collective call."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def as_plain(answer: Answer) -> dict[str, Any]:
    """An answer for a checkpoint."""
    told = asdict(answer) | {"source": int(answer.source)}
    if answer.example is not None:
        told["example"]["source"] = int(answer.example.source)
        told["example"]["meta"] = json.dumps(dict(answer.example.meta), default=str)
    return told


def from_plain(told: Mapping[str, Any]) -> Answer:
    """Out of a checkpoint."""
    example = None
    if (kept := told["example"]) is not None:
        messages = tuple(Message(**message) for message in kept["messages"])
        changed = {"source": Source(kept["source"]), "meta": json.loads(kept["meta"])}
        example = Example(**{**kept, "messages": messages, **changed})
    completion = Completion(**told["completion"])
    changed = {"source": Source(told["source"]), "example": example, "completion": completion}
    return Answer(**{**told, **changed})
