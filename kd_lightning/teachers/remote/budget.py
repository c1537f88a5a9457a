"""Limits on requests, tokens and money that are kept, not found out afterwards."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import BudgetError, Usage


@dataclass(frozen=True)
class Budget:
    """The most that a teacher may take; None: no limit.

    Args:
        requests: Requests sent, repeated ones included.
        tokens: Tokens of prompts and answers together.
        money: In the currency of the price table.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None

    def check(self, priced: bool) -> None:
        """Refuse limits that could not be kept."""
        for name, limit in vars(self).items():
            if limit is not None and limit < 0:
                raise KDError(f"budget.{name} must be 0 or more, not {limit}")
        if self.money is not None and not priced:
            raise KDError(
                "budget.money needs to know what tokens cost: write prices, a YAML file of "
                "`model: {in: ..., out: ...}` per million tokens"
            )


@dataclass(frozen=True)
class Cost:
    """What something may take at most, before it is known."""

    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.money + other.money,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.requests - other.requests,
            self.tokens - other.tokens,
            self.money - other.money,
        )


class Ledger:
    """What was taken, and what those in flight may still take (on one event loop).

    A request goes out only if it fits with the most that all in flight may take: answers cannot be
    longer than asked for, so a limit is not passed by more than a prompt's length was
    underestimated. Where it does not fit it waits until those in flight have told what they took.
    """

    def __init__(self, limits: Budget) -> None:
        self.limits = limits
        self.requests = 0
        self.usage = Usage()
        self._flying = Cost()
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def charge(self, requests: int, usage: Usage) -> None:
        """Count what was taken before, by an earlier part of the same work."""
        self.requests += requests
        self.usage += usage

    async def admit(self, cost: Cost) -> None:
        """Wait until it fits; BudgetError where it never will."""
        while (what := self._short(cost)) is not None:
            if not self._in_flight:
                raise self._spent(what)
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._in_flight += 1
        self._flying += cost

    def settle(self, cost: Cost, usage: Usage) -> None:
        """What was admitted is over, and took this."""
        self._in_flight -= 1
        self._flying = self._flying - cost if self._in_flight else Cost()
        self.usage += usage
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def send(self) -> None:
        """Count a request that goes out now; a repeated one was not foreseen, and must fit."""
        limit = self.limits.requests
        if limit is not None and self.requests >= limit:
            raise self._spent("requests")
        self.requests += 1

    def _short(self, cost: Cost) -> str | None:
        limits = {k: v for k, v in vars(self.limits).items() if v is not None}
        if not limits:
            return None
        tokens = self.usage.prompt_tokens + self.usage.completion_tokens
        taken = Cost(self.requests, tokens, self.usage.money) + self._flying + cost
        return next((k for k, limit in limits.items() if getattr(taken, k) > limit), None)

    def _spent(self, what: str) -> BudgetError:
        usage = self.usage
        return BudgetError(
            f"the next request would pass budget.{what} = {getattr(self.limits, what):g} (taken: "
            f"{self.requests} requests, {usage.prompt_tokens + usage.completion_tokens} tokens, "
            f"{usage.money:g} of money): what was answered is kept; raise the limit to go on"
        )
