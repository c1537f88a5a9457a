"""Several losses at once, each with its own weight and its own denominator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Loss, TokenLoss, token_sums
from kd_lightning.schedules import Schedule
from kd_lightning.types import Batch, LossOutput, ModelOutput, Progress


@dataclass
class Term:
    """One loss of a sum."""

    loss: Loss
    """What is minimised."""
    weight: float | Schedule = 1.0
    """Its factor: a number, or a schedule over the run."""


class Weighted(Loss):
    r"""A weighted sum of any losses.

    .. math:: \ell = \sum_k w_k \frac{\sum_n \ell_{k,n}}{N_k}

    Each term is divided by what it counts itself (N_k): cross-entropy skips the student's own
    words, a divergence does not. Terms on tokens share one projection of the hidden states. Terms
    are logged under their keys, `key/name` where a term has several itself.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2 (soft and hard targets).
    """

    def __init__(self, terms: dict[str, Term]) -> None:
        """`terms`: name of each term to its loss and weight."""
        super().__init__()
        if not terms:
            raise KDError("terms is empty: name at least one, such as kl: {loss: ForwardKL}")
        for name, term in terms.items():
            if not name or "." in name or "/" in name or hasattr(nn.ModuleDict, name):
                raise KDError(
                    f"a term cannot be called {name!r}: use a word without '.' and '/', such as kl"
                )
            if not isinstance(term.weight, Schedule) and not math.isfinite(term.weight):
                raise KDError(f"the weight of {name} must be a finite number, not {term.weight}")
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self.factors = {name: term.weight for name, term in terms.items()}
        self.needs = frozenset().union(*(loss.needs for _, loss in self._each()))
        self._progress = Progress(0, 1)
        self._keys: dict[str, tuple[str, str]] = {}  # our key -> (term, its own key)

    def weights(self) -> dict[str, float]:
        """The weight of each term in the present step."""
        return {
            name: factor(self._progress) if isinstance(factor, Schedule) else float(factor)
            for name, factor in self.factors.items()
        }

    def begin_step(self, progress: Progress) -> None:
        self._progress = progress
        for _, loss in self._each():
            loss.begin_step(progress)

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        weights = self.weights()
        for name, loss in self._each():
            if weights[name] == 0:
                continue  # its own value cannot be told from 0
            loss.end_step(
                {
                    own: values[key] / weights[name]
                    for key, (term, own) in self._keys.items()
                    if term == name
                }
            )

    def count(self, batch: Batch) -> dict[str, Tensor]:
        counts: dict[str, Tensor] = {}
        for name, loss in self._each():
            counts |= self._rename(name, loss.count(batch))
        return counts

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch
    ) -> LossOutput:
        weights = self.weights()
        on_tokens = {name: loss for name, loss in self._each() if isinstance(loss, TokenLoss)}
        sums = token_sums(on_tokens, student, teacher, batch) if on_tokens else {}
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        for name, loss in self._each():
            if isinstance(loss, TokenLoss):
                own = {loss.name: sums[name]}
            else:
                output = loss(student, teacher, batch)
                own = output.terms
                logs |= {f"{name}/{key}": value for key, value in output.logs.items()}
            terms |= {k: weights[name] * v for k, v in self._rename(name, own).items()}
        return LossOutput(terms, logs)

    def _each(self) -> Iterator[tuple[str, Loss]]:
        return ((name, cast(Loss, loss)) for name, loss in self.losses.items())

    def _rename(self, name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A term's values under our keys; remembers which is which for `end_step`."""
        keys = {key: name if len(own) == 1 else f"{name}/{key}" for key in own}
        self._keys |= {ours: (name, key) for key, ours in keys.items()}
        return {keys[key]: value for key, value in own.items()}
