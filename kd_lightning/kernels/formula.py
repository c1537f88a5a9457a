r"""Divergences as formulas: what a kernel has to know of a loss to compute it without calling it.

Every one here is a sum over the vocabulary, :math:`D = \sum_v \phi(p_v, q_v)`, p the teacher, q the
student. Its gradient needs :math:`r_v = q_v \, \partial\phi / \partial q_v` besides, to which any
constant multiple of q may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Family(IntEnum):
    r"""Shapes of phi, with parameters a, b and c.

    - `DIRECTIONS`: :math:`(a p - b q)(\log p - \log q)`; both directions of KL.
    - `MIXTURE`: :math:`a p \log(p/m) + b q \log(q/m)` with :math:`m = c p + (1 - c) q`.
    - `POWERS`: :math:`-\frac{c}{a b}\big(p^a q^b - \frac{a p^{a+b} + b q^{a+b}}{a + b}\big)`, and
      its limits where a or b is 0.
    - `DISTANCE`: :math:`|p - q| / 2`.
    - `LABEL`: -log q of the label, over all of the student's rows.
    """

    DIRECTIONS = 0
    MIXTURE = 1
    POWERS = 2
    DISTANCE = 3
    LABEL = 4


@dataclass(frozen=True)
class Formula:
    """One loss per token, as a member of a family.

    Kernels are compiled for these numbers: a loss whose numbers move from step to step states none.
    """

    family: Family
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    temperature: float = 1.0
    """Divides both models' logits."""
    factor: float = 1.0
    """Times value and gradient."""
