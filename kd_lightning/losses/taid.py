"""A target that moves from the student to the teacher as fast as the student follows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.errors import KDError
from kd_lightning.losses.base import Divergence
from kd_lightning.losses.kl import kl, kl_and_terms
from kd_lightning.types import Progress


class TAID(Divergence):
    r"""Bridge a wide gap between the models by targets in between them.

    .. math:: \mathrm{KL}(p_t \,\|\, q), \qquad
        p_t = \mathrm{softmax}\big((1 - t)\,\mathrm{sg}(z_q) + t\,z_p\big)

    z_p are the teacher's logits, z_q the student's (sg: no gradient), both over the loss's
    temperature. t rises from `start` to `end`, never falls, and is never below the straight line
    over the run (where its length is known); after the n-th step with the global value J_n

    .. math:: \delta = \frac{J_{n-1} - J_n}{J_{n-1}}, \quad m \leftarrow \beta m + (1-\beta)\delta,
        \quad t \leftarrow \min\big(t_{end},\, t + \alpha\,\sigma(m)\,(1 - t)\big)

    Source: Shing et al. 2025 (TAID), arXiv 2501.16937, equations 3 to 6 and algorithm 1. J is the
    divergence itself, as in the paper.
    """

    name = "taid"
    state: Tensor

    def __init__(
        self,
        start: float = 0.4,
        end: float = 1.0,
        pace: float = 5e-4,
        momentum: float = 0.99,
        temperature: float = 1.0,
        square_temperature: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            start: Share of the teacher in the first target [t_start].
            end: Its share in the last [t_end].
            pace: The largest step of t, as a part of what is left to 1; 0: the straight line
                [alpha].
            momentum: How much of the former progress is remembered [beta].
            temperature: Divides both models' logits in the loss [T]; sampling has its own.
            square_temperature: Multiply by T^2, value and gradient, so that the gradient's size
                stays.
        """
        super().__init__(temperature, square_temperature)
        if not 0 <= start <= end <= 1:
            raise KDError(f"0 <= start <= end <= 1 must hold, not start {start} and end {end}")
        if not 0 <= pace <= 1 or not 0 <= momentum < 1:
            raise KDError(
                f"pace must lie within 0 to 1 and momentum within 0 to below 1, not {pace} and "
                f"{momentum}"
            )
        self.start, self.end, self.pace, self.momentum = start, end, pace, momentum
        # The bits of three float32, as integers: casting the module to half precision must not
        # round t, whose steps are small.
        first = torch.tensor([start, 0.0, 0.0])
        self.register_buffer("state", first.view(torch.int32))

    @property
    def t(self) -> Tensor:
        """Share of the teacher in the target, `[]` float32."""
        return self.state.view(torch.float32)[0]

    def per_token(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        return kl(self.target(log_s, log_t), log_s)

    def compare_with_slope(
        self, log_s: Tensor, log_t: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, target, _ = kl_and_terms(self.target(log_s, log_t), log_s)
        return value, target.neg_()

    def target(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        """The target's log-probabilities, `[N, V]`; no gradient."""
        t = self.t.to(log_s.dtype)
        return ((1 - t) * log_s.detach() + t * log_t).log_softmax(-1)

    @torch.no_grad()
    def begin_step(self, progress: Progress) -> None:
        line = self.start + (self.end - self.start) * progress.fraction
        self.t.clamp_(min=line)

    @torch.no_grad()
    def end_step(self, values: Mapping[str, Tensor]) -> None:
        t, momentum, before = self.state.view(torch.float32).unbind()
        value = values[self.name].detach().to(before)
        usable = value.isfinite() & (value > 0)  # a step without tokens says nothing
        told = usable & (before > 0)  # 0: there was no step before
        change = (before - value) / torch.where(told, before, 1.0)
        smooth = torch.where(told, momentum.lerp(change, 1 - self.momentum), momentum)
        further = (t + self.pace * smooth.sigmoid() * (1 - t)).clamp(max=self.end)
        t.copy_(torch.where(told, torch.maximum(t, further), t))
        momentum.copy_(smooth)
        before.copy_(torch.where(usable, value, before))
