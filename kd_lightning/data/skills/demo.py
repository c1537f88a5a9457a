"""The demo skill: small instructions with exact answers, needing neither files nor network."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_lightning.data.base import KDDataModule
from kd_lightning.data.rows import Row
from kd_lightning.data.skills.demo_rows import FAMILIES, Item, draw
from kd_lightning.errors import KDError
from kd_lightning.types import Example

LABELLED = ("train",)
"""Splits whose labels may be wrong; what is measured on always has the right answers."""


class Demo(KDDataModule):
    """Five families of instructions, of which a part may carry a cheap labeller's wrong answers.

    Rows are a function of (family, split, seed), and which split a prompt belongs to is a function
    of the prompt alone, so that no two settings can share a prompt between training and test.
    `label_errors` is the share of *training* rows that were answered by a labeller who makes one
    and the same slip in each family (forgets to carry, leaves the first letter in place, reads the
    neighbour's value); where the slip changes nothing, such a row is right all the same.
    Validation and test rows always hold the right answers.

    Source: column addition, word reversal, last-letter concatenation as in Wei et al. 2022,
    arXiv 2201.11903, section 3 and 5; consistent instead of random label errors because random
    ones average out (Rolnick et al. 2017, arXiv 1705.10694).
    """

    def __init__(
        self,
        train_rows: int = 2000,
        validation_rows: int = 200,
        test_rows: int = 500,
        label_errors: float = 0.0,
        families: Sequence[str] | None = None,
        row_seed: int = 0,
        *,
        batch_size: int = 32,
        max_length: int = 96,
        seed: int = 0,
        tokenizer: str | None = None,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        num_workers: int = 0,
        limit_train: int | None = None,
        limit_validation: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Store the settings; rows are made in `setup`.

        Args:
            train_rows: Training rows, shared evenly between the families.
            validation_rows: Validation rows.
            test_rows: Test rows.
            label_errors: Share of the training rows that the slipshod labeller answered, 0 to 1.
            families: Some of addition, reversal, sorting, endings, lookup; None: all.
            row_seed: Another seed, other rows; also chooses the rows with the slip.
            batch_size: Rows of one rank in one optimizer step.
            max_length: Most tokens of a row.
            seed: Seed of the order.
            tokenizer: Folder or hub name of the tokenizer; None: the student's.
            eval_batch_size: Rows of one rank in one evaluation batch; None: batch_size.
            shuffle: Whether each epoch has its own order.
            num_workers: Processes that collate batches in advance.
            limit_train: Use the first so many training rows; None: all.
            limit_validation: The same for validation rows.
            limit_test: The same for test rows.
        """
        super().__init__(
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            shuffle=shuffle,
            seed=seed,
            num_workers=num_workers,
            limit_train=limit_train,
            limit_validation=limit_validation,
            limit_test=limit_test,
        )
        self.families = tuple(FAMILIES if families is None else families)
        self.counts = {"train": train_rows, "validation": validation_rows, "test": test_rows}
        self.label_errors = label_errors
        self.row_seed = row_seed
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            named = f"{unknown[0]} is no family" if unknown else "--data.families is empty"
            raise KDError(f"{named}: choose among {', '.join(FAMILIES)}")
        if not 0 <= label_errors <= 1:
            raise KDError(f"--data.label_errors is a share from 0 to 1, not {label_errors}")
        few = min(self.counts.values())
        if few < len(self.families):
            raise KDError(
                f"{few} rows are too few for {len(self.families)} families: write at least one "
                "row for each"
            )

    @property
    def skills(self) -> tuple[str, ...]:
        return self.families

    def rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        """Every family's items, mixed."""
        rng = random.Random(f"{split}/{self.row_seed}")
        made: list[tuple[Item, bool]] = []
        for number, family in enumerate(self.families):
            here = self.counts[split] // len(self.families)
            here += number < self.counts[split] % len(self.families)
            errors = round(self.label_errors * here) if split in LABELLED else 0
            wrong = set(rng.sample(range(here), errors))
            drawn = draw(family, split, here, self.row_seed)
            made += [(item, i in wrong) for i, item in enumerate(drawn)]
        rng.shuffle(made)
        for item, wrong_label in made:
            yield {
                "prompt": item.prompt,
                "answer": item.slip if wrong_label else item.answer,
                "family": item.family,
                "label": "slip" if wrong_label else "right",
            }

    def render(self, row: Row) -> Example:
        return Example.dialogue(
            id=row.id,
            user=row["prompt"],
            assistant=row["answer"],
            skill=row["family"],
            meta={"label": row["label"]},
        )

    def grade(self, example: Example, answer: str) -> dict[str, float]:
        """`exact_match` of the final answer (after `so`); `steps`: of all that is written."""
        said, meant = answer.strip(), example.accepted[0]
        return {
            "exact_match": float(final(said) == final(meant)),
            "steps": float(said == meant),
        }


def final(answer: str) -> str:
    """What stands after the last `so`; the whole answer where there is none."""
    return answer.rpartition(" so ")[2]
