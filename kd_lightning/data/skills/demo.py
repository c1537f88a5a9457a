"""The demo skill: small instructions with exact answers, needing neither files nor network."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.data.skills.demo_rows import FAMILIES, Item, draw
from kd_lightning.errors import KDError
from kd_lightning.types import Example


class Demo(KDDataModule):
    """Five families of instructions, of which a part may carry a cheap labeller's wrong answers.

    Rows are a function of family, split and `row_seed`, and which split a prompt belongs to is a
    function of the prompt alone: no two settings can share a prompt between training and test.

    `label_errors` is the share of the *training* rows that were answered by a labeller who makes
    one and the same slip in each family: forgets to carry, stops one letter early, takes the first
    letter for the last, reads the entry before. Where the slip changes nothing (no carry), such a
    row is right all the same. Validation and test rows always hold the right answers. The slips
    are consistent because random errors average out of a student (Rolnick et al. 2017, arXiv
    1705.10694) and because people's and models' errors are not random.

    Source: last letters as in Wei et al. 2022, arXiv 2201.11903, section 5; written addition as the
    scratchpad of Nye et al. 2021, arXiv 2112.00114.
    """

    def __init__(
        self,
        *,
        train_rows: int = 3000,
        validation_rows: int = 200,
        test_rows: int = 500,
        label_errors: float = 0.0,
        families: list[str] | None = None,
        row_seed: int = 0,
        **settings: Any,
    ) -> None:
        """Store the settings; rows are made in `setup`.

        Args:
            train_rows: Training rows, shared evenly between the families.
            validation_rows: Validation rows, likewise.
            test_rows: Test rows, likewise.
            label_errors: Share of the training rows that the slipshod labeller answered, 0 to 1.
            families: Some of addition, reversal, sorting, endings, lookup; None: all.
            row_seed: Another seed, other rows; it also chooses the rows with the slip.
            **settings: See KDDataModule.
        """
        super().__init__(**settings)
        self.families = tuple(FAMILIES if families is None else families)
        self.row_counts = {"train": train_rows, "validation": validation_rows, "test": test_rows}
        self.label_errors = label_errors
        self.row_seed = row_seed
        if self.splits.paths:
            raise KDError("Demo makes its own rows and reads no file: leave --data.path out")
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            named = f"{unknown[0]} is no family" if unknown else "--data.families is empty"
            raise KDError(f"{named}: choose among {', '.join(FAMILIES)}")
        if not 0 <= label_errors <= 1:
            raise KDError(f"--data.label_errors is a share from 0 to 1, not {label_errors}")
        for split, count in self.row_counts.items():
            if count < len(self.families):
                raise KDError(
                    f"--data.{split}_rows={count} is too few for {len(self.families)} families: "
                    "write at least one row for each"
                )

    @property
    def skills(self) -> tuple[str, ...]:
        return self.families

    def rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        """Every family's items, mixed."""
        rng = random.Random(f"{split}/{self.row_seed}")
        made: list[tuple[Item, bool]] = []
        for number, family in enumerate(self.families):
            count, left = divmod(self.row_counts[split], len(self.families))
            items = draw(family, split, count + (number < left), self.row_seed)
            errors = round(self.label_errors * len(items)) if split == "train" else 0
            slipped = set(rng.sample(range(len(items)), errors))
            made += [(item, i in slipped) for i, item in enumerate(items)]
        rng.shuffle(made)
        for item, slip in made:
            yield {
                "prompt": item.prompt,
                "answer": item.slip if slip else item.answer,
                "family": item.family,
                "labeller": "slipshod" if slip else "careful",
            }

    def render(self, row: Row) -> Example:
        return Example.dialogue(
            id=row.id,
            user=row.text("prompt"),
            assistant=row.text("answer"),
            skill=row.text("family"),
            meta={"labeller": row.text("labeller")},
        )

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        """Exact match of the final answer: what stands after `so`, where there is one."""
        return {"exact_match": float(final(answer.strip()) == final(example.accepted[0]))}


def final(answer: str) -> str:
    """What stands after the last `so`; the whole answer where there is none."""
    return answer.rpartition(" so ")[2]
