"""What memory is for, and what each of several ranks holds of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kd_lightning.doctor.machine import Machine
from kd_lightning.doctor.paper import size
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.layers import decoder_layers

WEIGHTS, GRADIENTS, OPTIMIZER = "student's weights", "gradients", "optimizer state"
ACTIVATIONS, LOSS = "activations", "loss tiles and gradient"
TEACHER, TEACHER_ACTIVATIONS = "teacher's weights", "teacher's activations"
GATHERED, BUCKETS, ROLLOUTS, REST = (
    "gathered layers",
    "gradient exchange",
    "rollout cache",
    "context and gaps (assumed)",
)

ORDER = (
    WEIGHTS,
    GRADIENTS,
    OPTIMIZER,
    ACTIVATIONS,
    LOSS,
    TEACHER,
    TEACHER_ACTIVATIONS,
    GATHERED,
    BUCKETS,
    ROLLOUTS,
    REST,
)
"""In which order they are shown; of the moment that needs the most."""

OF_THE_STEP = (GRADIENTS, ACTIVATIONS, LOSS, TEACHER_ACTIVATIONS, BUCKETS)
"""What is not there yet while a student writes."""


def spread(
    parts: Counter[str],
    machine: Machine,
    split: tuple[CausalLM, CausalLM | None],
    trained: int,
    whole: Mapping[str, int],
    rounded: Iterable[Tensor],
) -> None:
    """What each rank holds of it, in place.

    Args:
        parts: Of one process.
        machine: Where.
        split: The student and, where it is split too, the teacher.
        trained: Bytes of the trained weights.
        whole: Of some parts, the bytes that every rank has whole.
        rounded: Which of the student's weights these are.
    """
    if machine.shards > 1:
        for name in (WEIGHTS, GRADIENTS, OPTIMIZER, TEACHER):
            stays = whole.get(name, 0)
            parts[name] = -(-(parts[name] - stays) // machine.shards) + stays
        if machine.offloads:
            for name in (WEIGHTS, GRADIENTS, OPTIMIZER):
                parts[name] = whole.get(name, 0)
        parts[GATHERED] += gathered(split[0], 3, machine.keeps, rounded)
        # the teacher's layers are given back by then, all but its head's group
        parts[GATHERED] += 0 if split[1] is None else gathered(split[1], 0, keeps=False)
    elif machine.ranks > 1:
        parts[BUCKETS] += trained


def gathered(model: CausalLM, layers: int, keeps: bool, whole: Iterable[Tensor] = ()) -> int:
    """What of a sharded model stands whole on every rank, but for weights that are never split.

    The layer at work, the one that comes next and (student) its gradient; the embedding, the head.
    """
    others = set(map(id, whole))

    def split(module: nn.Module) -> int:
        return size(p for p in module.parameters() if id(p) not in others)

    each = [split(layer) for layer in decoder_layers(model.transformer)]
    rest = split(model.transformer) - sum(each)
    return rest + (sum(each) if keeps else min(sum(each), layers * max(each)))
