"""Whether a judge can still be trusted: answers that say nothing must not earn a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kd_lightning.elicit.pools import Pool, pool
from kd_lightning.errors import KDError
from kd_lightning.rewards.base import Around, Asked, Reward
from kd_lightning.types import Batch


class Canary(Reward):
    """Another reward, watched: at the first step and every so many it is shown empty answers.

    A student that is rewarded by a judge finds what the judge lets pass, however little it says.
    The log tells `canaries` and `canaries_passed`; with more passing than `most` the run stops.

    Source: Zhao et al. 2025, arXiv 2507.08794 (one token fools judges of free text).
    """

    def __init__(
        self,
        reward: Reward,
        passes: float | None = 0.0,
        every: int = 100,
        most: float = 0.05,
        texts: Pool = "master_keys",
    ) -> None:
        """Store the settings.

        Args:
            reward: Who is watched; its numbers are handed on as they are.
            passes: An empty answer that gets more than this has passed; null: one that gets no
                less than each other answer of its group (for PairJudge).
            every: Steps between two looks.
            most: Share of empty answers that may pass.
            texts: A list, the name of one of the library's pools, or a .yaml file.
        """
        super().__init__()
        self.reward = reward
        self.passes = passes
        self.every = every
        self.most = most
        self.texts = texts
        self._step = 0
        if every < 1 or not 0 <= most < 1:
            raise KDError("Canary: every is at least 1, and most a share from 0 to below 1")

    @property
    def parts(self) -> tuple[Reward, ...]:
        return (self.reward,)

    def check(self, around: Around) -> None:
        super().check(around)
        pool(self.texts)

    def scores(self, batch: Batch, asked: Sequence[Asked]) -> Tensor:
        if self._step % self.every == 0:
            self._look(batch, asked)
        self._step += 1
        return self.reward(batch, [each.answer for each in asked])[: len(asked)]

    def _look(self, batch: Batch, asked: Sequence[Asked]) -> None:
        texts = [str(text) for text in pool(self.texts)]
        places = list(self._places(batch, len(asked)))
        if not places:
            raise KDError(
                "Canary with passes: null compares within groups, and there is none of two answers "
                "or more: set passes to a number, or draw several answers for each prompt"
            )
        shown, passed = 0, []
        while shown < len(texts):
            answers = [each.answer for each in asked]
            put = {}
            for place in places:
                put[place] = answers[place] = texts[shown % len(texts)]
                shown += 1
            found = self.reward(batch, answers)
            passed += [text for i, text in put.items() if self._passed(found, i, batch)]
        self.count("canaries", shown)
        self.count("canaries_passed", len(passed))
        if len(passed) > self.most * shown:
            raise KDError(
                f"{type(self.reward).__name__} lets {len(passed)} of {shown} answers pass that say "
                f"nothing (such as {passed[0][:60]!r}), more than most = {self.most:g}: choose "
                "another judge or template; a student would learn to be empty"
            )

    def _places(self, batch: Batch, known: int) -> Iterator[int]:
        """Rows whose answer is replaced: all, or the last of each group."""
        if self.passes is not None or batch.group is None:
            yield from range(known if self.passes is not None else 0)
            return
        groups = batch.group[:known].tolist()
        last = {group: i for i, group in enumerate(groups)}
        yield from (i for group, i in last.items() if groups.count(group) > 1)

    def _passed(self, found: Tensor, place: int, batch: Batch) -> bool:
        if self.passes is not None:
            return bool(found[place] > self.passes)  # nan has not passed
        assert batch.group is not None
        others = batch.group == batch.group[place]
        others[place] = False
        rivals = found[others]
        return bool(torch.isfinite(found[place]) and (found[place] >= rivals).all())
