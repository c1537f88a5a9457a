"""One decoding step as a function of tensors alone: weights, keys and values come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

Step = Callable[..., Tensor]
"""(weights, keys and values, tokens `[B, 1]`, place `[1]`, positions `[B, 1]`, mask) to logits."""
Places = list[tuple[dict[str, Any], str, int]]
"""Of weights: a module's own table, the name in it, and which of the weights it is."""


class Slots(CacheLayerMixin):
    """Keys and values of one layer, `[B, heads, W, width]`: what is new goes to the place `at`."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        """Store the tensors; they are written to."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.at = at
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """All of them, with the new ones."""
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of a mask, which is given here."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Positions are given here."""
        return 0

    def get_max_length(self) -> int:
        """W."""
        return int(self.keys.shape[2])


def plain(transformer: nn.Module, places: Places) -> Step:
    """One step as the model computes it; it does not keep the model alive."""
    held = ref(transformer)

    def step(
        weights: list[Tensor],
        slots: list[Tensor],
        tokens: Tensor,
        at: Tensor,
        positions: Tensor,
        seen: Tensor,
    ) -> Tensor:
        model = held()
        assert model is not None
        layers: Any = [Slots(slots[i], slots[i + 1], at) for i in range(0, len(slots), 2)]
        with put(places, weights):
            out = model(
                input_ids=tokens, attention_mask=seen, position_ids=positions,
                past_key_values=Cache(layers=layers), use_cache=True,
            )  # fmt: skip
        logits: Tensor = out.logits
        return logits[:, -1]

    return step


def weights(module: nn.Module) -> tuple[Places, list[Tensor]]:
    """Where parameters and buffers are, and what they are, each once."""
    places: Places = []
    found: dict[int, int] = {}
    values: list[Tensor] = []
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in found:
                    found[id(value)] = len(values)
                    values.append(value)
                places.append((table, name, found[id(value)]))
    return places, values


@contextmanager
def put(places: Places, values: Sequence[Tensor]) -> Iterator[None]:
    """Other tensors in the places of weights for a while: a tracer has to see them come in."""
    own = [table[name] for table, name, _ in places]
    try:
        for table, name, which in places:
            table[name] = values[which]
        yield
    finally:
        for (table, name, _), value in zip(places, own, strict=True):
            table[name] = value
