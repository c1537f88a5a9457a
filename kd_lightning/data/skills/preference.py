"""Knowing which answer is better."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from kd_lightning.data import judged
from kd_lightning.data.base import KDDataModule
from kd_lightning.data.encoding import Encoded
from kd_lightning.data.judged import Judged
from kd_lightning.data.rows import Row
from kd_lightning.data.summary import Summary
from kd_lightning.errors import KDError
from kd_lightning.metrics.answers import rouge_l
from kd_lightning.types import Example, Message


class Preference(KDDataModule):
    """Answers with rewards: pairs, lists, or single ones, for losses that compare or judge them.

    Reads `prompt, chosen, rejected` (also as conversations and as HH's transcripts), `candidates`
    with `scores` (also as objects with both, as UltraFeedback's completions), and `answer` with a
    `label` or score. The answers to one prompt are rows of one group, stay together in a batch and
    on a process, and are left out together; `batch_size` counts prompts. A pair without scores has
    the rewards 1 and 0. A test row may have a prompt only.

    Source: the shapes of Bai et al. 2022 (HH), arXiv 2204.05862; Cui et al. 2023 (UltraFeedback),
    arXiv 2310.01377; Ethayarajh et al. 2024 (KTO), arXiv 2402.01306.
    """

    fields: ClassVar = {
        "prompt": ("instruction", "question", "query", "conversations", "messages"),
        "input": ("context",),
        "system": ("system_prompt",),
        "chosen": (),
        "rejected": (),
        "chosen_score": ("score_chosen",),
        "rejected_score": ("score_rejected",),
        "candidates": ("completions", "responses"),
        "scores": (),
        "answer": ("completion", "response", "output"),
        "label": ("score", "reward", "is_correct", "kto_tag"),
    }

    def __init__(
        self,
        path: str | dict[str, str] | None = None,
        *,
        answers_from: list[str] | None = None,
        scores_from: list[str] | None = None,
        unpaired: int = 0,
        apart: bool = False,
        **settings: Any,
    ) -> None:
        """Store the settings.

        Args:
            path: As for KDDataModule.
            answers_from: Columns that hold one answer each, in place of `candidates`; a path such
                as `large.solution` reaches into objects.
            scores_from: Columns of their scores, in the same order.
            unpaired: For KTO: how many answers, whatever their prompts, share one reference point,
                which as many answers put to another's prompt estimate (rows without a reward);
                batch_size then counts such groups, and a pair is a good (1) and a bad (0) answer.
                0: answers to one prompt are a group.
            apart: Read each answer and the prompt as documents by themselves, the prompt as a row
                of the group that has no reward: for a score that compares texts (DualEncoder).
            **settings: See KDDataModule.
        """
        super().__init__(path, **settings)
        self.answers_from = answers_from or []
        self.scores_from = scores_from or []
        self.unpaired = unpaired
        self.apart = apart
        if len(self.answers_from) != len(self.scores_from):
            raise KDError("--data.answers_from and --data.scores_from name equally many columns")
        if unpaired < 0 or unpaired == 1:
            raise KDError("--data.unpaired must be 0, or at least 2 answers for one point")
        if apart and unpaired:
            raise KDError("--data.apart compares answers to one prompt: leave --data.unpaired out")
        if self.streaming:
            raise KDError("Preference reads its rows before training: write --data.streaming=false")

    def render(self, row: Row) -> Example:
        judging = self._judged(row)
        if judging is None:
            return Example(row.id, judged.prompt_of(row))
        best = max(range(len(judging.answers)), key=lambda i: judging.rewards[i])
        good = len(judging.answers) > 1 or judging.rewards[0] > 0
        return Example(
            row.id,
            (*judging.prompt, Message("assistant", judging.answers[best])),
            references=(judging.answers[best],) if good else (),
            meta={"place": row.place, "answers": judging.answers, "rewards": judging.rewards},
        )

    def encodings(self, example: Example) -> list[Encoded]:
        """A row for each answer; a test row without any is its prompt."""
        if "answers" not in example.meta:
            return [self.encode(example)]
        pairs = zip(example.meta["answers"], example.meta["rewards"], strict=True)
        if self.apart:
            asked = "\n\n".join(message.content for message in example.prompt)
            texts = [(asked, math.nan), *pairs]
            rows = [self._alone(example, text, reward) for text, reward in texts]
        else:
            rows = [self._answered(example, answer, reward) for answer, reward in pairs]
        if self.unpaired:
            return rows
        group = str(example.meta["place"])
        return [replace(row, example=example, group=group) for row in rows]

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        """ROUGE-L to the best answer, and whether it is nearer to it than to the worst."""
        if not example.references:
            return {}
        grades = {"rouge_l": rouge_l(answer, example.references)}
        if len(answers := example.meta.get("answers", ())) > 1:
            rewards = example.meta["rewards"]
            worst = answers[min(range(len(answers)), key=lambda i: rewards[i])]
            grades["nearer_the_best"] = float(grades["rouge_l"] > rouge_l(answer, [worst]))
        return grades

    def _judged(self, row: Row) -> Judged | None:
        if self.answers_from:
            texts = [row.get(column) for column in self.answers_from]
            scores = [row.get(column) for column in self.scores_from]
            return judged.several(row, texts, scores)
        if "chosen" in row and "rejected" in row:
            found = judged.pair(row)
            return replace(found, rewards=(1.0, 0.0)) if self.unpaired else found
        if "candidates" in row:
            return judged.listed(row)
        if row.split == "test" and "answer" not in row:
            return None
        return judged.single(row)

    def _answered(self, example: Example, answer: str, reward: float) -> Encoded:
        """A row in which only this answer counts, not what the assistant said before it."""
        turns = [replace(m, weight=0.0) if m.weight is None else m for m in example.prompt]
        told = replace(example, messages=(*turns, Message("assistant", answer)))
        return replace(self.encode(told), reward=reward)

    def _alone(self, example: Example, text: str, reward: float) -> Encoded:
        """A row that is a whole text; its end token is a target only, so the student sees none."""
        told = Example.document(id=example.id, text=text)
        return replace(self.encoder.document(told, "eos"), reward=reward)

    def grouped(self, rows: list[Encoded], split: str) -> list[Encoded]:
        """Single answers in groups of `unpaired`, with mismatched ones beside them."""
        if not self.unpaired or split == "test":
            return rows
        order = np.random.default_rng([self.seed, len(rows)]).permutation(len(rows))
        starts = range(0, max(len(rows) - 1, 1), self.unpaired)
        ends = [*starts[1:], len(rows)]  # a last answer alone joins the group before
        made: list[Encoded] = []
        for number, (a, b) in enumerate(zip(starts, ends, strict=True)):
            together = [rows[i] for i in order[a:b]]
            together += self._mismatched(together)
            made += [replace(row, group=f"{split} {number}") for row in together]
        return made

    def _encode_split(self, split: str) -> list[Encoded]:
        rows = super()._encode_split(split)
        made = self.grouped(rows, split)
        if made is not rows:
            summary = self.summary[split]
            self.summary[split] = Summary.of(made, summary.truncated, summary.dropped)
        return made

    def _mismatched(self, rows: list[Encoded]) -> list[Encoded]:
        """Each prompt with the next row's answer that fits and answers another prompt."""
        made = []
        for i, row in enumerate(rows):
            for other in (*rows[i + 1 :], *rows[:i]):
                if other.example.prompt == row.example.prompt:
                    continue
                put = self._answered(row.example, other.example.answer, math.nan)
                if len(put) <= self.max_length:
                    made.append(put)
                    break
        return made
