"""Several losses at once, each with its own weight and its own denominator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Loss, TokenLoss
from kd_lightning.losses.chunks import Watch
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


@dataclass
class Leaf:
    """A loss somewhere within sums of sums."""

    loss: Loss
    factor: float
    """All weights on the way to it, multiplied."""
    counts: dict[str, Tensor]
    """What its own terms are divided by."""


class Weighted(Loss):
    r"""A weighted sum of any losses.

    .. math:: \ell = \sum_k w_k \frac{\sum_n \ell_{k,n}}{N_k}

    Each term is divided by what it counts itself (N_k): cross-entropy skips the student's own
    words, a divergence does not. Terms on tokens, also those of sums within the sum, share one
    projection of the hidden states. Terms are logged under their keys, `key/name` where a term has
    several itself.

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

    @property
    def remembers(self) -> bool:
        return any(loss.remembers for _, loss in self._each())

    def remember(self, student: ModelOutput, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for _, loss in self._each():
            found |= loss.remember(student, batch)
        return found

    def measured(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, loss in self._each()
            for key, value in loss.measured().items()
        }

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
        leaves = self.leaves({})
        sums: dict[str, Tensor] = {}
        if on_tokens := _on_tokens(leaves):
            sums = TokenSum(on_tokens, student, teacher, batch).terms()
        return self._collect(leaves, sums, lambda leaf: leaf.loss(student, teacher, batch))

    def objective(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Batch,
        counts: Mapping[str, Tensor],
        watch: Watch | None = None,
    ) -> tuple[Tensor, LossOutput]:
        leaves, parts = self.leaves(counts), []
        sums: dict[str, Tensor] = {}
        if on_tokens := _on_tokens(leaves):
            factors = {path: leaves[path].factor for path in on_tokens}
            own = {path: leaves[path].counts[loss.name] for path, loss in on_tokens.items()}
            projected = TokenSum(on_tokens, student, teacher, batch, watch=watch)
            part, sums = projected.total(factors, own)
            parts, watch = [part], None

        def other(leaf: Leaf) -> LossOutput:
            nonlocal watch
            part, output = leaf.loss.objective(student, teacher, batch, leaf.counts, watch=watch)
            parts.append(leaf.factor * part)
            watch = None
            return output

        output = self._collect(leaves, sums, other)
        return sum(parts[1:], parts[0]), output

    def leaves(self, counts: Mapping[str, Tensor], factor: float = 1.0) -> dict[str, Leaf]:
        """Every loss that is no sum itself, by the names on the way to it, joined by `/`."""
        weights = self.weights()
        found: dict[str, Leaf] = {}
        for name, loss in self._each():
            own = {
                k: counts[key]
                for key, (term, k) in self._keys.items()
                if term == name and key in counts
            }
            product = factor * weights[name]
            if isinstance(loss, Weighted):
                within = loss.leaves(own, product)
                found |= {f"{name}/{path}": leaf for path, leaf in within.items()}
            else:
                found[name] = Leaf(loss, product, own)
        return found

    def _collect(
        self,
        leaves: Mapping[str, Leaf],
        sums: Mapping[str, Tensor],
        other: Callable[[Leaf], LossOutput],
        above: str = "",
    ) -> LossOutput:
        """What all losses give, weighted and under our keys; `sums`: of those on tokens."""
        found = {}
        for name, loss in self._each():
            path = above + name
            if isinstance(loss, Weighted):
                found[name] = loss._collect(leaves, sums, other, f"{path}/")
            elif isinstance(loss, TokenLoss):
                found[name] = LossOutput({loss.name: sums[path]})
            else:
                found[name] = other(leaves[path])
        return self._joined(found)

    def _joined(self, found: Mapping[str, LossOutput]) -> LossOutput:
        """The terms' own results, weighted and under our keys, in our order."""
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        for name, weight in self.weights().items():
            own = self._rename(name, found[name].terms)
            terms |= {key: weight * value for key, value in own.items()}
            logs |= {f"{name}/{key}": value for key, value in found[name].logs.items()}
        return LossOutput(terms, logs)

    def _each(self) -> Iterator[tuple[str, Loss]]:
        return ((name, cast(Loss, loss)) for name, loss in self.losses.items())

    def _rename(self, name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A term's values under our keys; remembers which is which for `end_step`."""
        keys = {key: name if len(own) == 1 else f"{name}/{key}" for key in own}
        self._keys |= {ours: (name, key) for key, ours in keys.items()}
        return {keys[key]: value for key, value in own.items()}


def _on_tokens(leaves: Mapping[str, Leaf]) -> dict[str, TokenLoss]:
    return {path: leaf.loss for path, leaf in leaves.items() if isinstance(leaf.loss, TokenLoss)}
