"""Terms of use: whose outputs nobody may train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from kd_lightning.errors import KDError
from kd_lightning.models.loading import resolve
from kd_lightning.teachers.generator import Generator

NO_TRAIN = "no-train"
"""What stands in the licence of a generator whose outputs nobody may train on."""

NOT_STATED = "not stated"
"""What a card says of a generator without a licence."""


def forbids(licence: str | None) -> bool:
    """Whether a licence says that nothing may be trained on the outputs."""
    return NO_TRAIN in (licence or "").lower().replace("_", "-").replace(" ", "-")


def refuse_no_train(generators: Mapping[str, Generator], override: str | None) -> dict[str, Any]:
    """Refuse generators that nothing may be trained on, unless the user states why it may.

    Args:
        generators: By the names that the configuration gives them.
        override: The user's statement, in his own words; it goes into the card.

    Returns:
        What the card of the outputs carries: `licences` by name; `override` where it was needed.
    """
    licences = {name: generator.licence for name, generator in generators.items()}
    barred = [name for name, licence in licences.items() if forbids(licence)]
    stated = (override or "").strip()
    if barred and not stated:
        named = ", ".join(f"{name} ({licences[name]})" for name in barred)
        raise KDError(
            f"nothing may be trained on the outputs of {named}: take another generator, or, if "
            "you have the right, state why as `terms_override`, which the card will carry"
        )
    card: dict[str, Any] = {"licences": {n: v or NOT_STATED for n, v in licences.items()}}
    if barred:
        card["override"] = {"of": barred, "statement": stated}
    return card


def strictest(licences: list[str | None]) -> str | None:
    """The terms of what several generators said together: all of theirs, the prohibitions first."""
    known = sorted({licence for licence in licences if licence}, key=lambda x: (not forbids(x), x))
    if not known:
        return None
    return " AND ".join(known if None not in licences else [*known, NOT_STATED])


def licence_of(path: str) -> str | None:
    """The licence that a model's own card states, if it lies in a folder here."""
    card = Path(resolve(path)) / "README.md"
    if not card.is_file():
        return None
    stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    return str(stated) if stated else None
