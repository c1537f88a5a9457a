"""What is measured of the answers that a step is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import end_tokens
from kd_lightning.models.shared import common
from kd_lightning.types import IGNORE, Batch, Completion, Source

FIRST = 10
"""Steps whose lengths are what later ones are compared with."""
GRAM = 4
"""Words of a phrase that is looked for again in an answer."""

SUMS = ("answers", "tokens", "truncated", "phrases", "repeated", "pairs", "distinct", "student",
        "given", "shared")  # fmt: skip
"""Columns of `measured`: counts, which ranks add up."""


def measured(batch: Batch, shares: bool) -> Tensor:
    """Sums over the rank's answers, `[10]` float64: see `SUMS`.

    Different pairs of tokens are those within a rank. `shares`: whether the student computes a
    prompt once for all its answers.
    """
    answers = batch.answers
    phrases = [_grams(a.tokens, GRAM) for a in answers]
    pairs = [pair for a in answers for pair in _grams(a.tokens, 2)]
    given = sum(batch.lengths)
    values = (
        len(answers),
        sum(len(a.tokens) for a in answers),
        sum(not a.finished for a in answers),
        sum(map(len, phrases)),
        sum(len(each) - len(set(each)) for each in phrases),
        len(pairs),
        len(set(pairs)),
        int((batch.source[: len(answers)] == Source.STUDENT).sum()),
        given,
        sum(common(batch)) if shares else 0,
    )
    return torch.tensor(values, dtype=torch.float64)


def table(sums: Tensor) -> dict[str, float]:
    """The sums over all ranks as what is logged."""
    s = dict(zip(SUMS, sums.tolist(), strict=True))
    answers, phrases = max(1.0, s["answers"]), max(1.0, s["phrases"])
    return {
        "train/rollout/length": s["tokens"] / answers,
        "train/rollout/truncated": s["truncated"] / answers,
        "train/rollout/repetition": s["repeated"] / phrases,
        "train/rollout/distinct_2": s["distinct"] / max(1.0, s["pairs"]),
        "train/rollout/student_share": s["student"] / answers,
        "train/rollout/shared_tokens": s["shared"] / max(1.0, s["given"]),
    }


class LengthWatch:
    """Says once when answers get long and do not end, and what the likely cause is."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._told = False

    def __call__(self, batch: Batch, rows: Batch, student: CausalLM) -> None:
        """Look at a step: its answers, and the rows that the data had."""
        drawn = [
            a
            for a, source in zip(batch.answers, batch.source.tolist(), strict=False)
            if source == Source.STUDENT and a.tokens
        ]
        if self._told or not drawn:
            return
        length = sum(len(a.tokens) for a in drawn) / len(drawn)
        cut = sum(not a.finished for a in drawn) / len(drawn)
        if len(self._first) < FIRST:
            self._first.append(length)
            return
        before = sum(self._first) / FIRST
        if cut > 0.5 and length > 2 * before:
            self._told = True
            rank_zero_warn(self._sentence(drawn, length, before, cut, rows, student))

    def _sentence(
        self,
        drawn: Sequence[Completion],
        length: float,
        before: float,
        cut: float,
        rows: Batch,
        student: CausalLM,
    ) -> str:
        ends = end_tokens(student.transformer, student.tokenizer)
        last = sorted(set(_last_targets(rows)) - set(ends))[:3]
        name = student.tokenizer.convert_ids_to_tokens
        cause = (
            f"the data's answers end with {', '.join(map(repr, name(last)))}, at which nothing "
            "stops: make it an eos_token_id of the student, or change the chat template"
            if last
            else "the loss gives the end token no weight, or the teacher does not end either: "
            "compare their end tokens, and see mask_truncated"
        )
        return (
            f"the student's answers have grown from {before:.0f} to {length:.0f} tokens and "
            f"{cut:.0%} of them do not end. It stops at {', '.join(map(repr, name(ends)))}; the "
            f"likely cause: {cause}"
        )


def _last_targets(rows: Batch) -> list[int]:
    """The last learned token of each row."""
    found = []
    for targets in rows.targets.tolist():
        learned = [target for target in targets if target != IGNORE]
        found += learned[-1:]
    return found


def _grams(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
