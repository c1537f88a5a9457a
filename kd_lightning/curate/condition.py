"""Quality said in the prompt: a token that a student learns to be asked for the best with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_lightning.curate.select import scored
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


def _put(record: Record, field: str, token: str, separator: str) -> dict[str, Any] | None:
    """The field with the token before it; of turns, before the first of the user's."""
    value = record.get(field)
    if isinstance(value, str):
        return {field: f"{token}{separator}{value}"}
    for i, turn in enumerate(value if isinstance(value, list) else []):
        if isinstance(turn, dict) and turn.get("role") == "user":
            told = {**turn, "content": f"{token}{separator}{turn['content']}"}
            return {field: [*value[:i], told, *value[i + 1 :]]}
    return None


class ConditionOnScore(Step):
    """Put a token for the quantile of a record's number before its prompt.

    Source: Lu et al. 2022 (Quark), arXiv 2205.13636.
    """

    def __init__(
        self,
        tokens: list[str],
        score: str = "score",
        field: str = "prompt",
        separator: str = " ",
        into: str = "condition",
    ) -> None:
        """Store the settings.

        Args:
            tokens: One for each quantile, of the lowest numbers first.
            score: Field with the number; equal ones get the same token.
            field: Where the token is put: a text, or turns.
            separator: Between token and text.
            into: Field that the token is written to as well.
        """
        if len(tokens) < 2:
            raise KDError("tokens needs one for each quantile: at least two")
        self.tokens = tokens
        self.score = score
        self.field = field
        self.separator = separator
        self.into = into

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        having, values = scored(records, self.score, work)
        below = {v: i for i, v in reversed(list(enumerate(sorted(values))))}
        made = []
        for record, value in zip(having, values, strict=True):
            token = self.tokens[below[value] * len(self.tokens) // len(having)]
            changed = _put(record, self.field, token, self.separator)
            if changed is None:
                work.drop(record, f"no {self.field}")
            else:
                work.count(f"with {token}")
                made.append(record.changed(work.name, **{**changed, self.into: token}))
        return made


class ConditionOnSource(Step):
    """Put a token for the origin of a record before its prompt.

    Source: Wang et al. 2023 (OpenChat), arXiv 2309.11235.
    """

    def __init__(
        self,
        tokens: dict[str, str],
        source: str = "source",
        field: str = "prompt",
        separator: str = " ",
        into: str = "condition",
    ) -> None:
        """Store the settings.

        Args:
            tokens: Each source to its token.
            source: Field with the source.
            field: Where the token is put: a text, or turns.
            separator: Between token and text.
            into: Field that the token is written to as well.
        """
        if not tokens:
            raise KDError("tokens must name a token for each source")
        self.tokens = tokens
        self.source = source
        self.field = field
        self.separator = separator
        self.into = into

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            token = self.tokens.get(record.text(self.source))
            if token is None:
                work.drop(record, f"{self.source} without token")
            elif (changed := _put(record, self.field, token, self.separator)) is None:
                work.drop(record, f"no {self.field}")
            else:
                made.append(record.changed(work.name, **{**changed, self.into: token}))
        return made
