"""Learning-rate schedules that know the length of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd_lightning.errors import KDError


class _Planned(LambdaLR):
    """A factor on the learning rate; the run's length is told by the Distiller."""

    def __init__(self, optimizer: Optimizer, warmup: float, total_steps: int | None) -> None:
        if warmup < 0:
            raise KDError(f"scheduler: warmup must not be negative, it is {warmup}")
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer, self.factor)

    def plan(self, total_steps: int) -> None:
        """Take the run's number of optimizer steps, unless the configuration gave one."""
        if self.total_steps is None:
            self.total_steps = total_steps
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * self.factor(self.last_epoch)

    def factor(self, step: int) -> float:
        """Rises over the warm-up steps, then follows `after`."""
        total = self.total_steps or 0
        warm = round(self.warmup * total) if self.warmup < 1 else round(self.warmup)
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, total - warm) if total > 0 else 0.0
        return self.after(min(1.0, done))

    def after(self, done: float) -> float:
        """The factor at the fraction `done` of what follows the warm-up."""
        raise NotImplementedError


class WarmupCosine(_Planned):
    """Linear warm-up, then half a cosine down to `final` times the learning rate.

    Source: Loshchilov, Hutter 2016, arXiv 1608.03983, equation 5, without restarts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.05,
        final: float = 0.1,
        total_steps: int | None = None,
    ) -> None:
        """Store the settings.

        Args:
            optimizer: Whose learning rate is set.
            warmup: Steps, or below 1 a share of the run.
            final: Share of the learning rate at the end.
            total_steps: Length of the run in optimizer steps; None: the trainer's.
        """
        self.final = final
        super().__init__(optimizer, warmup, total_steps)

    def after(self, done: float) -> float:
        return self.final + (1 - self.final) * (0.5 + 0.5 * math.cos(math.pi * done))


class WarmupLinear(_Planned):
    """Linear warm-up, then a straight line down to `final` times the learning rate."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.05,
        final: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        """Store the settings.

        Args:
            optimizer: Whose learning rate is set.
            warmup: Steps, or below 1 a share of the run.
            final: Share of the learning rate at the end.
            total_steps: Length of the run in optimizer steps; None: the trainer's.
        """
        self.final = final
        super().__init__(optimizer, warmup, total_steps)

    def after(self, done: float) -> float:
        return 1 + (self.final - 1) * done


class WarmupConstant(_Planned):
    """Linear warm-up, then the learning rate as it is."""

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.05, total_steps: int | None = None
    ) -> None:
        """Store the settings.

        Args:
            optimizer: Whose learning rate is set.
            warmup: Steps, or below 1 a share of the run.
            total_steps: Length of the run in optimizer steps; None: the trainer's.
        """
        super().__init__(optimizer, warmup, total_steps)

    def after(self, done: float) -> float:
        return 1.0


def configured(
    parameters: Iterable[nn.Parameter],
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    make_scheduler: Callable[[Optimizer], Any] | None,
    steps: Callable[[], int],
) -> Any:
    """An optimizer with its schedule, as Lightning takes them; a schedule is told the steps."""
    optimizer = make_optimizer(parameters)
    if make_scheduler is None:
        return optimizer
    scheduler = make_scheduler(optimizer)
    if (plan := getattr(scheduler, "plan", None)) is not None:
        plan(steps())
    return {"optimizer": optimizer, "lr_scheduler": scheduler}
