"""Every word drawn from a mixture of both models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.base import Moment
from kd_lightning.rollouts.drawn import FREE, DrawnAnswers
from kd_lightning.rollouts.engines import Engine, no_voice, speaks, voice
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Sampling


class TeacherMixed(DrawnAnswers):
    r"""The student's words with some of the teacher's among them: against degenerate text.

    .. math:: \tilde p_t = \alpha\, p_t + (1 - \alpha)\, q_t

    p is the teacher, q the student. The log-probabilities of the mixture are the answers'
    `behaviour`: a policy gradient with `ImportanceWeighted` corrects for it. By `level: token` each
    word counts q/p~ of its own, as published: low variance, and biased, since what stands before
    it was drawn from the mixture too. `level: prefix` and `answer` take the full product: unbiased,
    and its variance grows with the length. Divergences on the text have no weights: they learn at
    the places where the mixture goes.

    Source: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 2.2.
    """

    needs_teacher = True
    knows_behaviour = True

    def __init__(
        self,
        teacher_share: float = 0.2,
        n: int = 1,
        sampling: Sampling = FREE,
        mask_truncated: bool = False,
        document_prompt: int = 16,
        engine: Engine | None = None,
    ) -> None:
        """Store the settings.

        Args:
            teacher_share: Of the mixture, strictly between 0 and 1 [alpha].
            n: Answers to each prompt; a group of them is compared by losses that do so.
            sampling: How they are drawn, at temperature 1 from all tokens: other settings would
                change the mixture.
            mask_truncated: Learn nothing from answers that were cut at the length limit.
            document_prompt: Tokens of a document (text without roles) that are given; the rest is
                drawn.
            engine: What draws; null: Auto.
        """
        super().__init__(n, sampling, mask_truncated, document_prompt, engine)
        if not 0 < teacher_share < 1:
            raise KDError(
                f"teacher_share lies strictly between 0 and 1, not {teacher_share}: the ends are "
                "FromStudent and FromTeacher"
            )
        if (sampling.temperature, sampling.top_p, sampling.top_k) != (1.0, 1.0, 0):
            raise KDError(
                "TeacherMixed draws at temperature 1 from all tokens: leave sampling.temperature, "
                "top_p and top_k out"
            )
        self.teacher_share = teacher_share

    def check(self, teacher: Teacher | None) -> None:
        super().check(teacher)
        if teacher is not None and not speaks(teacher):
            raise no_voice(teacher, type(self).__name__)

    def draw(self, draws: Sequence[Draw], moment: Moment) -> list[Drawn]:
        assert moment.teacher is not None
        with voice(moment.teacher, type(self).__name__) as teacher:
            if teacher is moment.student or teacher.placement is not None:
                raise KDError(
                    "TeacherMixed asks both models at every word, and this teacher shares the "
                    "student's weights or is sharded: write LocalTeacher and trainer.strategy=ddp"
                )

            def before(some: Sequence[Draw]) -> list[LogitsProcessor]:
                return [Mixing(Follower(teacher, some), self.teacher_share)]

            return self._engine.draw(moment.student, draws, before)


class Follower:
    """Another model's next-token log-probabilities along a generation, with a cache of its own."""

    def __init__(self, model: CausalLM, draws: Sequence[Draw]) -> None:
        self._model = model
        longest = max(len(draw.prompt) for draw in draws)
        left = torch.tensor([longest - len(draw.prompt) for draw in draws])
        self._mask = (torch.arange(longest)[None] >= left[:, None]).long().to(model.device)
        self._cache: object | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """`[B, V]` for the token behind `ids` `[B, T]`."""
        missing = ids.shape[1] - self._mask.shape[1]
        if missing > 0:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), missing)], 1)
        new = ids.shape[1] if self._cache is None else missing
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)[:, -new:]
        model = self._model.eval()
        output = model.transformer(
            input_ids=ids[:, -new:],
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1, : model.head.vocab]
        return logits.float().log_softmax(-1)


class Mixing(LogitsProcessor):
    """Log-probabilities of the mixture in place of the student's scores."""

    def __init__(self, teacher: Follower, share: float) -> None:
        self._teacher, self._share = teacher, share

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        told = self._teacher(input_ids)
        known = told.shape[-1]
        own = scores[:, :known].float().log_softmax(-1)
        mixed = torch.logaddexp(told + math.log(self._share), own + math.log1p(-self._share))
        whole = torch.full_like(scores, -torch.inf, dtype=mixed.dtype)
        whole[:, :known] = mixed
        return whole
