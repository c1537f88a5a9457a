"""The moment in which a student writes: keys and values of all its answers at once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from kd_lightning.models.causal import CausalLM
from kd_lightning.rollouts.auto import Auto
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.from_teacher import FromTeacher

if TYPE_CHECKING:
    from kd_lightning.distiller import Distiller


def cache_bytes(distiller: Distiller, student: CausalLM, rows: int, columns: int) -> int:
    """Keys and values of the answers that are drawn at once; 0 where the student writes none.

    2 x layers x key-value heads x width of a head x bytes x rows x (prompt + new tokens).

    Args:
        distiller: The run.
        student: Its model, real or on paper.
        rows: Prompts of one rank in a step.
        columns: Tokens of the longest row, which a prompt may have.
    """
    writing = writes(distiller.answering.rollout)
    if writing is None:
        return 0
    config: Any = student.transformer.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = getattr(config, "max_position_embeddings", None) or 2**62
    longest = min(columns + writing.sampling.max_new_tokens, positions)
    at_once = rows * getattr(writing, "n", 1)
    engine = getattr(writing, "engine", None) or Auto()
    if engine.served:  # elsewhere, or in its own share of the memory
        return 0
    at_once = min(at_once, getattr(engine, "rows", at_once))
    at_once = min(at_once, max(1, getattr(engine, "tokens", 2**62) // longest))
    size = next(student.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * width * size * at_once * longest)


def writes(rollout: Rollout | None) -> Any:
    """The part of a rollout that draws from the student, if one does."""
    if rollout is None or isinstance(rollout, FromTeacher):
        return None
    if getattr(rollout, "sampling", None) is not None:
        return rollout
    inner = [v for v in vars(rollout).values() if isinstance(v, Rollout)]
    return next((found for found in map(writes, inner) if found is not None), None)


def drawn_here(rollout: Rollout) -> None:
    """Let a trial draw in its own process: it has no server, and nobody brings weights to one."""
    engine = getattr(rollout, "_engine", None)
    if engine is not None and engine.served:
        rollout._engine = Auto()  # type: ignore[attr-defined]
    for part in rollout.parts:
        drawn_here(part)


def at_its_most(
    parts: Counter[str], cache: int, name: str, only_in_the_step: tuple[str, ...]
) -> None:
    """What is held while answers are drawn, where that is more than in the rest of the step."""
    if cache > sum(parts[other] for other in only_in_the_step):
        for other in only_in_the_step:
            parts[other] = 0
        parts[name] = cache
