"""What tokens cost: a table of models, with the prices of a million tokens in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from kd_lightning.errors import KDError

MILLION = 1_000_000

Prices = str | Mapping[str, Mapping[str, float]] | None
"""A YAML file or its content: `model: {in: 0.15, out: 0.6}`, per million tokens."""


@dataclass(frozen=True)
class Price:
    """Of one model, per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


def price_of(model: str, prices: Prices) -> Price:
    """The model's price; nothing where there is no table.

    Prices change and differ by contract: the table is the user's, none is built in.
    """
    if prices is None:
        return Price()
    table = _read(prices) if isinstance(prices, str) else prices
    if model not in table:
        known = ", ".join(sorted(table)) or "no model"
        raise KDError(f"the price table has {known}: add a line `{model}: {{in: ..., out: ...}}`")
    row = table[model]
    if not isinstance(row, Mapping) or set(row) != {"in", "out"}:
        raise KDError(
            f"the price of {model} must be written `{{in: ..., out: ...}}`, per million tokens"
        )
    found = [row["in"], row["out"]]
    if not all(isinstance(x, int | float) and 0 <= x < float("inf") for x in found):
        raise KDError(f"the prices of {model} must be numbers from 0 up, not {found}")
    return Price(*map(float, found))


def _read(path: str) -> Mapping[str, Mapping[str, float]]:
    file = Path(path)
    if not file.is_file():
        raise KDError(f"there is no price table {path}: name a YAML file of `model: {{in:, out:}}`")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KDError(f"the price table {path} is not YAML: {error}") from None
    if not isinstance(table, Mapping):
        raise KDError(f"the price table {path} must be lines of `model: {{in: ..., out: ...}}`")
    return table
