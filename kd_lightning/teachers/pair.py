"""Can this teacher teach this student by this loss?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import KDError
from kd_lightning.models import vocabulary
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Asking, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_pair(
    loss: Asking,
    teacher: Teacher | None,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    data: Any,
) -> None:
    """Refuse, before anything is loaded, what could only fail later.

    Args:
        loss: What a step minimises.
        teacher: Who knows, if anybody.
        tokenizer: Gives the student's.
        data: The data module, if there is one yet.
    """
    if teacher is None:
        if loss.needs:
            raise KDError(
                f"{type(loss).__name__} needs a teacher: write model.teacher, or use "
                "--model.loss=CrossEntropy"
            )
        return
    teacher.check(loss)
    if teacher.tokenizer is not None and (loss.needs or Signal.LOGITS in teacher.offers):
        vocabulary.check_same(tokenizer(), teacher.tokenizer)
    teacher.check_data(data)
