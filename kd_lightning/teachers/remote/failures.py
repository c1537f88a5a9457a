"""What can go wrong between us and a server, by what is to be done about it."""

from __future__ import annotations

from kd_lightning.teachers.generator import GeneratorError


class MissingError(GeneratorError):
    """The server has no such model, or no such address."""


class ExchangeError(Exception):
    """No good answer came this time: it may be tried again."""

    def __init__(
        self,
        why: str,
        reached: bool = True,
        wait: float | None = None,
        counts: bool = True,
    ) -> None:
        super().__init__(why)
        self.reached = reached
        """Whether there was a connection."""
        self.wait = wait
        """Seconds that the server asks to wait; None: it says nothing."""
        self.counts = counts
        """Whether it uses up one of the tries (being told to wait does not)."""


class RequestError(Exception):
    """This request has no answer, and trying again would not help."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status
        """The server's, where it refused."""
