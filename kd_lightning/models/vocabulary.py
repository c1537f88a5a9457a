"""Do two models mean the same by the same id?"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from kd_lightning.errors import KDError


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that the tokenizer knows."""
    return max(tokenizer.get_vocab().values()) + 1


def check_same(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a pair whose ids differ below the smaller vocabulary; the first one is named.

    Tokens that only the larger of the two knows are cut off by the losses (`Head.vocab`).
    """
    ids_s = {i: token for token, i in student.get_vocab().items()}
    ids_t = {i: token for token, i in teacher.get_vocab().items()}
    for i in range(min(max(ids_s), max(ids_t)) + 1):
        if ids_s.get(i) != ids_t.get(i):
            raise KDError(
                f"the tokenizers of student and teacher differ, first at id {i}: student "
                f"{ids_s.get(i)!r}, teacher {ids_t.get(i)!r}; give the student the teacher's "
                "tokenizer (--model.student.tokenizer), or train on the words alone "
                "(--model.loss=CrossEntropy --model.teacher=null)"
            )
