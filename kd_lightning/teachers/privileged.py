"""The student that was told more than the student."""

from __future__ import annotations

import re
from typing import Any

import torch

from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.teachers.moving import MovingAverage
from kd_lightning.types import IGNORE, Batch, Example, Message, ModelOutput, Signal

HINT = (
    "{prompt}\n\nHere is an answer that is right:\n{answer}\n\n"
    "Answer the question yourself, in your own words."
)


class Privileged(MovingAverage):
    r"""A moving average of the student that also sees the data's answer: self-distillation.

    .. math:: p(y_t \mid y_{<t}, x) = q_{\bar\theta}(y_t \mid y_{<t}, x, c)

    The words y that are learned stay; the question x before them is put anew, with the context c.
    Behind a rollout they are the student's own, so it learns what it would have said, had it known.
    With decay 0 the teacher is the student of the last step.

    Source: Shenfeld et al. 2026 (SDFT), arXiv 2601.19897, section 3; privileged information:
    Vapnik, Vashist 2009, Neural Networks 22.
    """

    name = "the student that sees the answer"

    def __init__(
        self,
        hint: str = HINT,
        decay: float = 0.99,
        every: int = 1,
        template: str = "auto",
        template_arguments: dict[str, Any] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            hint: The last question as the teacher reads it; `{prompt}` is the student's, `{answer}`
                the data's answer.
            decay: As for MovingAverage.
            every: As for MovingAverage.
            template: As for the data module.
            template_arguments: As for the data module.
        """
        super().__init__(decay, every)
        if "{answer}" not in hint:
            raise KDError("Privileged: hint shows the teacher nothing: write {answer} into it")
        self.hint = hint
        self.template = template
        self.template_arguments = template_arguments

    def forward(self, batch: Batch, needs: frozenset[Signal]) -> ModelOutput:
        told = [self._told(batch, row) for row in range(len(batch))]
        output = super().forward(_padded([ids for ids, _, _ in told], batch), needs)
        hidden = output.hidden.new_zeros((*batch.input_ids.shape, output.hidden.shape[-1]))
        for row, (ids, start, place) in enumerate(told):
            stop = batch.lengths[row]
            hidden[row, place:stop] = output.hidden[row, start : len(ids)]
        return ModelOutput(hidden, output.head)

    def _told(self, batch: Batch, row: int) -> tuple[list[int], int, int]:
        """Ids with the context, and the place before the answer in them and in the row."""
        ids: list[int] = batch.input_ids[row, : batch.lengths[row]].tolist()
        learned = (batch.targets[row, : len(ids)] != IGNORE).nonzero()[:, 0].tolist()
        if not learned or row >= len(batch.examples):
            return ids, 0, 0
        place = learned[0]
        if learned[-1] - place + 1 != len(learned):
            raise KDError(
                f"row {batch.examples[row].id} learns several turns, and Privileged knows the last "
                "answer only: write a rollout, whose rows learn that alone"
            )
        prompt = self._prompt(batch.examples[row])
        made = prompt + ids[place + 1 :]
        most = getattr(
            self.model.transformer.config.get_text_config(), "max_position_embeddings", len(made)
        )
        if len(made) > most:
            raise KDError(
                f"row {batch.examples[row].id} with its answer in the question has {len(made)} "
                f"tokens, and the model has {most} positions: write a smaller --data.max_length"
            )
        return made, len(prompt) - 1, place

    def _prompt(self, example: Example) -> list[int]:
        """The question with the hint."""
        turns = list(example.prompt)
        last = next((i for i, m in reversed(list(enumerate(turns))) if m.role == "user"), None)
        if last is None:
            raise KDError(
                f"Privileged: row {example.id} asks nothing: give it rows with a question"
            )
        told = {"{prompt}": turns[last].content, "{answer}": example.answer}
        text = re.sub(r"\{prompt\}|\{answer\}", lambda found: told[found[0]], self.hint)
        turns[last] = Message("user", text)
        assert self.tokenizer is not None, "call attach first"
        encoder = Encoder(self.tokenizer, self.template, self.template_arguments)
        return encoder.prompt(Example(example.id, (*turns, Message("assistant", example.answer))))


def _padded(rows: list[list[int]], batch: Batch) -> Batch:
    """Rows of ids as a batch without anything to learn."""
    shape = (len(rows), max(len(ids) for ids in rows))
    made = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, ids in enumerate(rows):
        made[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[row, : len(ids)] = 1
    device = batch.input_ids.device
    return Batch(
        made.to(device),
        mask.to(device),
        targets=torch.full(shape, IGNORE, device=device),
        weights=torch.zeros(shape, device=device),
        source=batch.source,
        skill=batch.skill,
        lengths=tuple(len(ids) for ids in rows),
    )
