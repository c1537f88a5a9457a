"""The demo skill as preferences: the right answer against a slip, needing no files."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.data.rows import Row
from kd_lightning.data.skills.demo import Demo, final
from kd_lightning.data.skills.demo_rows import draw
from kd_lightning.data.skills.preference import Preference
from kd_lightning.errors import KDError
from kd_lightning.types import Example


class DemoPreference(Preference):
    """The demo's instructions, each with the right answer and what a slip makes of it.

    Rows where the slip changes nothing have no pair and are left out. `shuffled` is the share of
    the training pairs whose order was thrown away (drawn anew): a student that learns from pairs
    must learn nothing at 1.
    """

    def __init__(
        self,
        *,
        train_rows: int = 2000,
        validation_rows: int = 200,
        test_rows: int = 500,
        shuffled: float = 0.0,
        families: list[str] | None = None,
        row_seed: int = 0,
        **settings: Any,
    ) -> None:
        """Store the settings; rows are made in `setup`.

        Args:
            train_rows: Instructions to make training pairs of.
            validation_rows: The same for validation.
            test_rows: The same for the test.
            shuffled: Share of the training pairs of which a coin says which is chosen, 0 to 1.
            families: As for Demo.
            row_seed: As for Demo.
            **settings: See Preference.
        """
        super().__init__(**settings)
        if self.splits.paths:
            raise KDError("DemoPreference makes its own rows: leave --data.path out")
        if not 0 <= shuffled <= 1:
            raise KDError(f"--data.shuffled is a share from 0 to 1, not {shuffled}")
        self.shuffled = shuffled
        counts = {"train_rows": train_rows, "validation_rows": validation_rows}
        self._demo = Demo(**counts, test_rows=test_rows, families=families, row_seed=row_seed)

    @property
    def skills(self) -> tuple[str, ...]:
        return self._demo.skills

    def rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        """Every family's pairs, mixed."""
        demo = self._demo
        rng = random.Random(f"{split}/{demo.row_seed}/pairs")
        made = []
        for number, family in enumerate(demo.families):
            count, left = divmod(demo.row_counts[split], len(demo.families))
            items = draw(family, split, count + (number < left), demo.row_seed)
            made += [item for item in items if item.slip != item.answer]
        rng.shuffle(made)
        for item in made:
            pair = [item.answer, item.slip]
            if split == "train" and rng.random() < self.shuffled and rng.random() < 0.5:
                pair.reverse()
            told = {"prompt": item.prompt, "family": item.family, "right": item.answer}
            yield {**told, "chosen": pair[0], "rejected": pair[1]}

    def render(self, row: Row) -> Example:
        made = super().render(row)
        meta = {**made.meta, "right": row.values_by_column["right"]}
        return Example(
            made.id, made.messages, made.references, row.values_by_column["family"], meta=meta
        )

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        """Exact match of the right final answer."""
        return {"exact_match": float(final(answer.strip()) == final(example.meta["right"]))}
