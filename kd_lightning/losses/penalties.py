"""Keeping a policy near a reference by a term of the loss, and what each form really descends."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Penalty(ABC):
    """A loss for each word that grows with the distance from a reference.

    On words that the student drew itself. As a penalty within the reward, use `reward_kl`.
    """

    whole = False
    """Whether it needs the reference's whole distribution rather than the word's probability."""

    @abstractmethod
    def __call__(self, logp: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
        """The penalty of each word, `[B, T]`.

        Args:
            logp: Of the student, with a graph, `[B, T]`.
            reference: Of the reference, `[B, T]`.
            ratio: Student's over the probability under the policy that drew the words, with a
                graph, `[B, T]`.
        """


class FullKL(Penalty):
    r"""KL(student || reference) over the vocabulary at each word: exact, no variance.

    Needs the reference's distribution: `reference: teacher`.
    """

    whole = True

    def __call__(self, logp: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
        raise AssertionError("made from distributions")


class K2(Penalty):
    r"""Half the squared log-ratio: :math:`\frac12 (\log q - \log q_0)^2`.

    Its expected gradient is that of KL(student || reference); its value is not that KL.

    Source: Schulman 2020, Approximating KL divergence.
    """

    def __call__(self, logp: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
        return 0.5 * (logp - reference).square()


class ScoreKL(Penalty):
    r"""Score function: the value is an unbiased KL(student || reference), and so is the gradient.

    .. math:: \nabla = \mathrm{sg}(\log q - \log q_0) \, \nabla \log q

    The same gradient as `K2`'s; the reported value is the log-ratio itself (k1).
    """

    def __call__(self, logp: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
        ratio = (logp - reference).detach()
        return ratio + ratio * (logp - logp.detach())


class K3(Penalty):
    r"""What GRPO's code has: :math:`e^{d} - 1 - d` with :math:`d = \log q_0 - \log q`.

    An unbiased, never negative value of KL(student || reference), but as a loss its expected
    gradient is that of the *forward* KL, KL(reference || student): it pulls towards everything that
    the reference says. To stay within the reference use `FullKL`, `K2`, `ScoreKL`, or `corrected`:
    times :math:`q / q_{old}`, gradient included, which descends KL(student || reference) on words
    of an older policy too.

    Source: Schulman 2020, Approximating KL divergence; Shao et al. 2024 (DeepSeekMath), arXiv
    2402.03300, equation 4; corrected: DeepSeek-V3.2 2025, arXiv 2512.02556.
    """

    def __init__(self, corrected: bool = False) -> None:
        """Store the settings.

        Args:
            corrected: Multiply by the ratio to the policy that drew the words.
        """
        self.corrected = corrected

    def __call__(self, logp: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
        gap = reference - logp
        value = gap.expm1() - gap
        return value * ratio if self.corrected else value
