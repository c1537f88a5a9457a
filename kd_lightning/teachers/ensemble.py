"""Several generators as one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request, Usage
from kd_lightning.teachers.rights import strictest
from kd_lightning.types import Signal

WINDOW = 4096
"""Requests that are shared out before any of them is asked."""


class Ensemble(Generator):
    """A pool that is drawn from, several that all answer, or each for what it can do.

    Replies say who answered: `Reply.by`, and `Reply.sources` for each of several answers. Members
    are asked one after the other.

    Source: answers of a pool of models: Cui et al. 2023 (UltraFeedback), arXiv 2310.01377,
    section 2.2.
    """

    def __init__(
        self,
        members: list[Generator],
        how: Literal["draw", "all", "first_able"] = "draw",
        weights: list[float] | None = None,
        name: str = "ensemble",
    ) -> None:
        """Store the settings.

        Args:
            members: The generators, each with a name of its own.
            how: `draw`: one member answers a request, drawn by what is asked and its seed; `all`:
                each member gives its n answers (to requests for text only); `first_able`: the
                first member that offers what is asked, and where it fails on a request, the next.
            weights: How often each member is drawn, in any unit; None: equally often.
            name: How records and cards call it.
        """
        self.members = members
        self.how = how
        self.weights = weights
        self.name = name
        if not members:
            raise KDError("an Ensemble without members: write `members`, a list of generators")
        if weights is not None and (
            how != "draw" or len(weights) != len(members) or min(weights) < 0 or sum(weights) <= 0
        ):
            raise KDError(
                f"`weights` of an Ensemble go with how=draw, one for each of the {len(members)} "
                f"members, none negative and not all 0; there are {weights} with how={how}"
            )

    @property
    def offers(self) -> frozenset[Signal]:  # type: ignore[override]
        """draw: what all offer; all: text, where all offer it; first_able: what any offers."""
        each = [member.offers for member in self.members]
        if self.how == "first_able":
            return frozenset.union(*each) & {Signal.TEXT, Signal.LOGPROB}
        shared = frozenset.intersection(*each)
        return shared & ({Signal.TEXT} if self.how == "all" else {Signal.TEXT, Signal.LOGPROB})

    @property
    def licence(self) -> str | None:  # type: ignore[override]
        """The terms of all members, prohibitions first."""
        return strictest([member.licence for member in self.members])

    @property
    def identity(self) -> str:
        told = [self.how, self.weights, [(m.name, m.identity) for m in self.members]]
        return f"Ensemble:{json.dumps(told)}"

    def ready(self) -> None:
        for member in self.members:
            member.ready()

    def open(self) -> None:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise KDError(
                f"the members of {self.name} are told apart by name, and are called "
                f"{', '.join(names)}: give each a `name` of its own"
            )
        for member in self.members:
            member.open()

    def close(self) -> None:
        for member in self.members:
            member.close()

    def charged(self, requests: int, usage: Usage) -> None:
        """Each member is told of the whole: no budget is overrun, if some are not used up."""
        for member in self.members:
            member.charged(requests, usage)

    def require(self, kinds: Iterable[Kind], who: str) -> None:
        wanted = list(kinds)
        if self.how != "first_able":
            for member in self.members:
                member.require(wanted, f"{who} (through {self.name})")
        super().require(wanted, who)

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[int, Reply]]]:
        numbered = enumerate(requests)
        while window := dict(islice(numbered, WINDOW)):
            if self.how == "draw":
                drawn = {number: self._drawn(request) for number, request in window.items()}
                for k in range(len(self.members)):
                    yield from self._ask(k, {n: r for n, r in window.items() if drawn[n] == k})
            elif self.how == "all":
                yield from self._all(window)
            else:
                yield from self._first(window)

    def _drawn(self, request: Request) -> int:
        told = json.dumps([self.name, [member.name for member in self.members]])
        rng = random.Random(request.key(told))  # a pool within a pool draws on its own
        return rng.choices(range(len(self.members)), self.weights)[0]

    def _ask(self, k: int, requests: dict[int, Request]) -> Iterator[list[tuple[int, Reply]]]:
        member, numbers = self.members[k], list(requests)
        if not numbers:
            return
        for done in member.replies(requests.values()):
            yield [(numbers[i], _signed(reply, member)) for i, reply in done]

    def _first(self, waiting: dict[int, Request]) -> Iterator[list[tuple[int, Reply]]]:
        failed: dict[int, Reply] = {}
        for k, member in enumerate(self.members):
            mine = {n: r for n, r in waiting.items() if r.kind.needs in member.offers}
            for done in self._ask(k, mine):
                good = [(n, reply) for n, reply in done if not reply.failure]
                failed.update((n, _after(failed.get(n), r)) for n, r in done if r.failure)
                for n, reply in good:
                    before = failed.pop(n, None)
                    spent = Usage() if before is None else before.usage
                    yield [(n, replace(reply, usage=spent + reply.usage))]
                    del waiting[n]
        for n in waiting.keys() - failed.keys():
            failed[n] = Reply(failure=f"no member of {self.name} offers {waiting[n].kind}")
        if failed:
            yield [(n, failed[n]) for n in sorted(failed)]

    def _all(self, window: dict[int, Request]) -> Iterator[list[tuple[int, Reply]]]:
        given: dict[int, list[Reply]] = {n: [] for n in window}
        for k in range(len(self.members)):
            last = k == len(self.members) - 1
            for done in self._ask(k, window):
                for n, reply in done:
                    given[n].append(reply)
                if last:
                    yield [(n, _joined(given.pop(n))) for n, _ in done]


def _signed(reply: Reply, member: Generator) -> Reply:
    """With who said it, where the member did not say so itself."""
    by = reply.by or member.name
    sources = reply.sources or (by,) * len(reply.completions)
    failure = f"{member.name}: {reply.failure}" if reply.failure else ""
    return replace(reply, by=by, sources=sources, failure=failure)


def _after(before: Reply | None, reply: Reply) -> Reply:
    """A failure after another member's."""
    if before is None:
        return reply
    told = f"{before.failure}; {reply.failure}"
    return replace(reply, failure=told, usage=before.usage + reply.usage)


def _joined(replies: Sequence[Reply]) -> Reply:
    """One reply out of each member's; where one failed, so has the whole."""
    failure = "; ".join(reply.failure for reply in replies if reply.failure)
    return Reply(
        completions=() if failure else tuple(c for r in replies for c in r.completions),
        usage=sum((reply.usage for reply in replies), Usage()),
        by=", ".join(reply.by for reply in replies),
        sources=() if failure else tuple(source for r in replies for source in r.sources),
        failure=failure,
    )
