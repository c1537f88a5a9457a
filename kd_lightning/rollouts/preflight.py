"""Student and teacher compared before the first answer is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import end_tokens
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.engines import speaks, voice
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.types import Asking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_parts(rollout: Rollout, teacher: Teacher | None, loss: Asking) -> None:
    """Refuse, before anything is loaded, what could only fail later."""
    rollout.check(teacher)
    if rollout.makes_text and isinstance(teacher, CachedTeacher) and loss.needs:
        raise KDError(
            f"CachedTeacher knows the rows of its cache only, and {type(rollout).__name__} makes "
            "new ones: write model.teacher=LocalTeacher, or model.rollout=FromData"
        )


def check_tokens(student: CausalLM, teacher: Teacher | None) -> None:
    """Refuse models whose answers end differently; say what else differs."""
    if teacher is None or teacher.tokenizer is None:
        return
    own, other = student.tokenizer, teacher.tokenizer
    ends = set(end_tokens(student.transformer, own))
    theirs = _ends(teacher, other)
    if not ends & theirs:
        raise KDError(
            f"the student's answers end with {_named(own, ends)} and the teacher's with "
            f"{_named(other, theirs)}: neither would end by the other's judgement. Give both the "
            "same eos_token_id (generation_config.json), or use the chat variants of both"
        )
    if only := ends ^ theirs:
        rank_zero_warn(
            f"only one of student and teacher ends an answer with {_named(own, only)}: answers may "
            "be longer than the other would make them"
        )
    for what, read in COMPARED.items():
        mine, its = read(own), read(other)
        if mine != its:
            rank_zero_warn(
                f"student and teacher differ in {what}: {_short(mine)} and {_short(its)}. The "
                "teacher judges the student's words as the student's tokenizer writes them"
            )


COMPARED: dict[str, Callable[[PreTrainedTokenizerBase], Any]] = {
    "the token that begins a text (bos)": lambda t: t.bos_token_id,
    "the padding token": lambda t: t.pad_token_id,
    "the chat template": lambda t: t.chat_template,
    "their special tokens": lambda t: sorted(t.all_special_tokens),
}
"""What else is compared."""


def _ends(teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    if speaks(teacher):
        with voice(teacher, "") as model:
            return set(end_tokens(model.transformer, tokenizer))
    end = tokenizer.eos_token_id
    return {end} if isinstance(end, int) else set()


def _named(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> str:
    names = [f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in sorted(ids)]
    return " or ".join(names) or "no token"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
