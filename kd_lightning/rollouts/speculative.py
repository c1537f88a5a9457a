"""The student drafts, the teacher corrects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoded
from kd_lightning.errors import KDError
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.models.generation import end_tokens
from kd_lightning.models.picking import pick
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.chance import share
from kd_lightning.rollouts.drawn import FREE, DrawnAnswers
from kd_lightning.rollouts.engines import Engine
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Example, Sampling, Signal


class Speculative(DrawnAnswers):
    """The student writes; words that the teacher would not say are replaced by ones that it would.

    The student drafts `block` tokens, the teacher scores them in one forward; the first that is not
    among its `top` likeliest is replaced by one that it draws among them, and the student goes on
    from there. With top 1 the text is the teacher's greedy one, with a top of the whole vocabulary
    the student's own. The block changes the cost, and which random numbers are drawn, not the law.

    Source: Xu et al. 2024 (speculative knowledge distillation), arXiv 2410.11325, algorithm 1.
    """

    needs_teacher = True
    elsewhere = True

    def __init__(
        self,
        top: int = 25,
        block: int = 16,
        n: int = 1,
        sampling: Sampling = FREE,
        mask_truncated: bool = False,
        document_prompt: int = 16,
        engine: Engine | None = None,
    ) -> None:
        """Store the settings.

        Args:
            top: How many of the teacher's likeliest tokens are accepted [K].
            block: Tokens that are drafted before the teacher looks.
            n: Answers to each prompt; a group of them is compared by losses that do so.
            sampling: How both draw. Its temperature is not the loss's; `seed` adds to the run's.
            mask_truncated: Learn nothing from answers that were cut at the length limit.
            document_prompt: Tokens of a document (text without roles) that are given; the rest is
                drawn.
            engine: What draws; null: Auto.
        """
        super().__init__(n, sampling, mask_truncated, document_prompt, engine)
        if top < 1 or block < 1:
            raise KDError(f"top and block must be at least 1, not {top} and {block}")
        self.top = top
        self.block = block

    def check(self, teacher: Teacher | None) -> None:
        super().check(teacher)
        if teacher is not None and Signal.LOGITS not in teacher.offers:
            raise KDError(
                f"Speculative reads the teacher's logits, and {type(teacher).__name__} offers "
                "none: choose LocalTeacher"
            )

    def draw(self, draws: Sequence[Draw], moment: Moment) -> list[Drawn]:
        student = moment.student
        if student.placement is not None:
            raise KDError(
                "Speculative reads the teacher's logits while the student speaks, and KDStrategy "
                "shards both: write --trainer.strategy=ddp"
            )
        ends = set(end_tokens(student.transformer, student.tokenizer))
        texts: list[tuple[int, ...]] = [() for _ in draws]

        def ended(i: int) -> bool:
            return bool(texts[i]) and texts[i][-1] in ends

        while going := [i for i, d in enumerate(draws) if len(texts[i]) < d.room and not ended(i)]:
            some = [self._draft(draws[i], texts[i]) for i in going]
            drafts = [drawn.tokens for drawn in self._engine.draw(student, some)]
            for i, kept in zip(going, self._judge(some, drafts, moment), strict=True):
                texts[i] += kept
        return [Drawn(text, ended(i), ()) for i, text in enumerate(texts)]

    def _draft(self, draw: Draw, text: tuple[int, ...]) -> Draw:
        left = min(self.block, draw.room - len(text))
        return replace(draw, prompt=draw.prompt + text, room=left)

    @torch.no_grad()
    def _judge(
        self, draws: Sequence[Draw], drafts: Sequence[tuple[int, ...]], moment: Moment
    ) -> list[tuple[int, ...]]:
        """What is kept of each draft: all of it, or up to a first replaced token."""
        rows = [
            Encoded(
                Example("", ()),
                np.asarray([*draw.prompt, *draft], np.int32),
                np.asarray([0.0] * len(draw.prompt) + [1.0] * len(draft), np.float32),
            )
            for draw, draft in zip(draws, drafts, strict=True)
        ]
        batch = Collate(0, {})(rows).to(moment.student.device)
        assert moment.teacher is not None
        output = moment.teacher.forward(batch, frozenset({Signal.LOGITS}))
        starts = [len(draw.prompt) - 1 for draw in draws]
        places = [(i, starts[i] + t) for i, draft in enumerate(drafts) for t in range(len(draft))]
        at = torch.tensor(places, device=output.hidden.device)
        scores = output.head(output.hidden[at[:, 0], at[:, 1]])[:, : output.head.vocab].float()
        said = torch.tensor([token for draft in drafts for token in draft], device=scores.device)
        least = scores.topk(min(self.top, scores.shape[-1]), dim=-1).values[:, -1]
        accepted = (scores.gather(-1, said[:, None])[:, 0] >= least).tolist()
        kept, first = [], 0
        for draw, draft in zip(draws, drafts, strict=True):
            mine = accepted[first : first + len(draft)]
            wrong = next((t for t, good in enumerate(mine) if not good), None)
            if wrong is None:
                kept.append(draft)
            else:
                other = self._replacement(draw, draft[:wrong], scores[first + wrong])
                kept.append((*draft[:wrong], other))
            first += len(draft)
        return kept

    def _replacement(self, draw: Draw, before: tuple[int, ...], scores: Tensor) -> int:
        """A token among the teacher's likeliest."""
        how = replace(self.sampling, top_k=self.top)
        if how.temperature == 0:
            return int(scores.argmax())
        told = (draw.sampling.seed, draw.number, *draw.prompt, *before, "teacher")
        shares = torch.tensor([share(*told)], dtype=torch.float64, device=scores.device)
        return int(pick(scores[None], shares, how))
