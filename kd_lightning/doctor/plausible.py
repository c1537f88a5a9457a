"""What cannot be true of the log-probabilities that a server tells.

The likeliest tokens of a place have no more than 1 altogether, and a token that was drawn greedily
is the first of its own list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kd_lightning.teachers.remote.wire import Piece

ROUNDING = 0.05
"""Nats by which two tellings of one log-probability may differ: bfloat16's arithmetic."""


def at_odds(pieces: Sequence[Piece], named: bool = True) -> Iterator[str]:
    """What cannot be true of a greedy answer's log-probabilities.

    `named`: whether each token has a name of its own. Where names are shared, a list may hold
    another token's number by the name of the likeliest, and only numbers are compared.
    """
    listed = [p for p in pieces if p.top and not _bytes(p)]
    most = max(listed, key=_mass, default=None)
    if most is not None and _mass(most) > 1.0 + ROUNDING:
        yield (
            f"its log-probabilities are not normalised: the {len(most.top)} likeliest tokens of a "
            f"place have {_mass(most):.2f} altogether, more than 1; it must tell those of the "
            "softmax at temperature 1"
        )
    odd = [p for p in listed if not _likeliest(p, p, named)]
    if odd and any(_shifted(pieces, by) for by in (1, -1)):
        yield (
            "its log-probabilities are shifted by one token: they belong to the place beside; take "
            "another version of the server"
        )
    elif odd:
        yield (
            f"{len(odd)} of {len(listed)} greedy tokens are not the likeliest of their own lists: "
            "it bends the distribution (penalties, a temperature of its own: see extra), or the "
            "log-probabilities are of something else"
        )


def _mass(piece: Piece) -> float:
    return sum(map(math.exp, piece.top.values()))


def _bytes(piece: Piece) -> bool:
    """A part of a letter, whose name several tokens may share."""
    return "\ufffd" in piece.text or piece.text.startswith("bytes:")


def _likeliest(piece: Piece, place: Piece, named: bool) -> bool:
    """Whether a token is, by name (where it has one) and number, the first in a place's list."""
    first = max(place.top.values())
    told = -math.inf if piece.logprob is None else piece.logprob
    listed = place.top.get(piece.text, -math.inf) if named else told
    return listed >= first - ROUNDING and told >= first - ROUNDING


def _shifted(pieces: Sequence[Piece], by: int) -> bool:
    """Whether lists, or numbers alone, fit the tokens of the places beside."""
    pairs = [(pieces[i], pieces[i + by]) for i in range(len(pieces)) if 0 <= i + by < len(pieces)]
    pairs = [(a, b) for a, b in pairs if a.top and b.top]
    names = [a.text == max(b.top, key=b.top.__getitem__) for a, b in pairs]
    numbers = [abs((a.logprob or 0.0) - max(b.top.values())) < ROUNDING for a, b in pairs]
    return len(pairs) > 1 and (all(names) or all(numbers))
