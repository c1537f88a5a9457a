"""Answers of earlier steps, used again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.rollouts.answers import Answer, Asked
from kd_lightning.rollouts.base import Moment, Rollout
from kd_lightning.rollouts.chance import number, share
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.kept import as_plain, from_all_ranks, from_plain
from kd_lightning.schedules import Schedule


class Replay(Rollout):
    """Rows are answered anew, or replaced by answers of earlier steps with their prompts.

    With probability `reuse` a row gives way to stored answers to some prompt (all that were drawn
    for it together); the others are answered by `inner` and stored, the oldest ones leaving. What
    is stored is the same on all ranks, whoever drew it, and is in the checkpoint. `behaviour` stays
    that of the student who drew it, so importance weights know how old an answer is.

    DistiLLM is `Mixed` with OnValidation as its fraction and this as its student, `reuse` rising
    over the run.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.2.
    """

    def __init__(
        self,
        inner: Rollout | None = None,
        capacity: int = 1000,
        reuse: float | Schedule = 0.5,
    ) -> None:
        """Store the settings.

        Args:
            inner: How rows are answered anew; null: FromStudent.
            capacity: Prompts whose answers are kept, over all ranks.
            reuse: Probability that a row gives way to a stored one: a number, or a schedule.
        """
        if capacity < 1:
            raise KDError(f"capacity must be at least 1, not {capacity}")
        if not isinstance(reuse, Schedule) and not 0 <= reuse < 1:
            raise KDError(f"reuse is at least 0 and below 1, not {reuse}: who would draw then?")
        self.inner = inner
        self.capacity = capacity
        self.reuse = reuse
        self._inner = inner or FromStudent()
        self._held: list[list[Answer]] = []
        self.knows_behaviour = self._inner.knows_behaviour

    @property
    def parts(self) -> tuple[Rollout, ...]:
        return (self._inner,)

    def answers(self, rows: Sequence[Asked], moment: Moment) -> list[list[Answer]]:
        reuse = self.reuse(moment.progress) if isinstance(self.reuse, Schedule) else self.reuse
        told = (moment.seed, moment.step)
        old = [bool(self._held) and share(*told, row.name, "replay") < reuse for row in rows]
        fresh = [row for row, again in zip(rows, old, strict=True) if not again]
        drawn = self._inner.answers(fresh, moment)
        found = iter(drawn)
        made = [
            self._held[number(*told, row.name, "which") % len(self._held)] if again else next(found)
            for row, again in zip(rows, old, strict=True)
        ]
        self._keep([(row.name, each) for row, each in zip(fresh, drawn, strict=True)])
        return made

    def _keep(self, drawn: list[tuple[str, list[Answer]]]) -> None:
        """Store what all ranks drew, in an order that does not depend on who did."""
        new = sorted(from_all_ranks(drawn), key=lambda each: each[0])
        self._held = [*self._held, *(answers for _, answers in new)][-self.capacity :]

    def state(self) -> dict[str, Any]:
        return {"held": [[as_plain(answer) for answer in answers] for answers in self._held]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held = [[from_plain(told) for told in answers] for answers in state["held"]]
