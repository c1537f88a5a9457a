"""Kullback-Leibler divergences between teacher and student, in both directions."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.kernels.formula import Family, Formula
from kd_lightning.losses.base import Divergence


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities `[N, V]`, `[N]`; neither may hold an infinity."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def kl_and_terms(log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(a || b), `[N]`; a, `[N, V]`; and what KL sums over, a log(a/b), `[N, V]`."""
    a = log_a.exp()
    terms = (log_a - log_b).mul_(a)
    return terms.sum(-1), a, terms


class ForwardKL(Divergence):
    r"""Cover everything that the teacher finds likely: KL(teacher || student).

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_v p_v (\log p_v - \log q_v)

    p is the teacher, q the student. The divergence itself, not the cross-entropy: the teacher's
    entropy is subtracted, so the value is 0 at q = p. Gradient by the student's logits: (q - p)/T.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
    """

    name = "kl"

    @property
    def linear_in_teacher(self) -> bool:
        return True

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return kl(log_t, log_s)

    def closed_form(self) -> Formula | None:
        return Formula(Family.DIRECTIONS, 1.0, 0.0)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, p, _ = kl_and_terms(log_t, log_s)
        return value, p.neg_()


class ReverseKL(Divergence):
    r"""Stay within what the teacher finds likely: KL(student || teacher).

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_v q_v (\log q_v - \log p_v)

    p is the teacher, q the student. Exact over the vocabulary at each token; the prefix is given,
    so nothing is propagated through sampled words.

    Source: Gu, Dong, Wei, Huang 2024 (MiniLLM), arXiv 2306.08543, equation 1.
    """

    name = "reverse_kl"

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return kl(log_s, log_t)

    def closed_form(self) -> Formula | None:
        return Formula(Family.DIRECTIONS, 0.0, 1.0)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, _, terms = kl_and_terms(log_s, log_t)
        return value, terms


class SymmetricKL(Divergence):
    r"""Both directions at once, mixed.

    .. math:: w\,\mathrm{KL}(p \,\|\, q) + (1 - w)\,\mathrm{KL}(q \,\|\, p)

    p is the teacher, q the student. w = 1/2 is *half* of Jeffreys' divergence
    KL(p || q) + KL(q || p); w = 1 is `ForwardKL`, w = 0 `ReverseKL`.

    Source: Jeffreys 1946, An invariant form for the prior probability in estimation problems.
    """

    name = "symmetric_kl"

    def __init__(
        self,
        forward_weight: float = 0.5,
        temperature: float = 1.0,
        square_temperature: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            forward_weight: The share of KL(teacher || student), 0 to 1 [w].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 <= forward_weight <= 1:
            raise KDError(f"forward_weight must lie between 0 and 1, not {forward_weight}")
        self.forward_weight = forward_weight

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        w = self.forward_weight
        return ((w * log_t.exp() - (1 - w) * log_s.exp()) * (log_t - log_s)).sum(-1)

    def closed_form(self) -> Formula | None:
        return Formula(Family.DIRECTIONS, self.forward_weight, 1 - self.forward_weight)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        w, gap = self.forward_weight, log_t - log_s
        forward, backward = log_t.exp().mul_(w), log_s.exp().mul_(1 - w)
        value = ((forward - backward) * gap).sum(-1)
        return value, backward.mul_(gap).add_(forward).neg_()
