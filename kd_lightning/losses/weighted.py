"""Several losses at once, each with its own weight and its own denominator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Loss, TokenLoss
from kd_lightning.losses.tokens import TokenSum
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
        """Store the settings.

        Args:
            terms: Name of each term to its loss and weight.
        """
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

    @property
    def temperatures(self) -> frozenset[float]:
        return frozenset().union(*(loss.temperatures for _, loss in self._each()))

    @property
    def linear_in_teacher(self) -> bool:
        return all(loss.linear_in_teacher for _, loss in self._each())

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
        found = {name: loss(student, teacher, batch) for name, loss in self._others()}
        if on_tokens := self._on_tokens():
            sums = TokenSum(on_tokens, student, teacher, batch).terms()
            found |= {name: LossOutput({on_tokens[name].name: v}) for name, v in sums.items()}
        return self._joined(found)

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
    ) -> tuple[Tensor, LossOutput]:
        weights, found, total = self.weights(), {}, torch.zeros((), device=student.hidden.device)
        for name, loss in self._others():
            own = {key: counts[ours] for ours, (term, key) in self._keys.items() if term == name}
            part, found[name] = loss.objective(student, teacher, batch, own)
            total = total + weights[name] * part
        if on_tokens := self._on_tokens():
            part, sums = TokenSum(on_tokens, student, teacher, batch).total(weights, counts)
            found |= {name: LossOutput({on_tokens[name].name: v}) for name, v in sums.items()}
            total = total + part
        return total, self._joined(found)

    def _joined(self, found: Mapping[str, LossOutput]) -> LossOutput:
        """The terms' own results, weighted and under our keys, in our order."""
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        for name, weight in self.weights().items():
            own = self._rename(name, found[name].terms)
            terms |= {key: weight * value for key, value in own.items()}
            logs |= {f"{name}/{key}": value for key, value in found[name].logs.items()}
        return LossOutput(terms, logs)

    def _on_tokens(self) -> dict[str, TokenLoss]:
        return {name: loss for name, loss in self._each() if isinstance(loss, TokenLoss)}

    def _others(self) -> Iterator[tuple[str, Loss]]:
        return ((name, loss) for name, loss in self._each() if not isinstance(loss, TokenLoss))

    def _each(self) -> Iterator[tuple[str, Loss]]:
        return ((name, cast(Loss, loss)) for name, loss in self.losses.items())

    def _rename(self, name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A term's values under our keys; remembers which is which for `end_step`."""
        keys = {key: name if len(own) == 1 else f"{name}/{key}" for key in own}
        self._keys |= {ours: (name, key) for key, ours in keys.items()}
        return {keys[key]: value for key, value in own.items()}
