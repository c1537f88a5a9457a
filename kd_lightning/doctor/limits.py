"""Check of the rows' lengths against the limits, of the configuration and of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from kd_lightning.doctor.findings import Finding, ok, problem, warning
from kd_lightning.doctor.patient import Patient, parts
from kd_lightning.models import loading


def lengths(patient: Patient) -> Iterator[Finding]:
    """Rows against the limits: of the configuration, and of the models."""
    sample = patient.sample
    found = np.array(sample.lengths)
    limit = max(part.max_length for part in parts(patient.data))
    half, most, longest = (int(np.percentile(found, q)) for q in (50, 95, 100))
    told = f"half of the rows have up to {half} tokens, 95% up to {most}, the longest {longest}"
    dropped = sum(sample.dropped.values())
    lost = ", ".join(f"{n} {why}" for why, n in sample.dropped.items())
    if sample.refused:
        yield problem(sample.refused)
    elif not sample.kept:
        yield problem(
            f"no row is left of {len(found)} ({lost}): raise --data.max_length={limit} (the "
            f"longest row has {longest} tokens), or look at the template"
        )
    elif dropped + sample.truncated > 0.01 * len(found):
        share = (dropped + sample.truncated) / len(found)
        yield warning(
            f"{told}; {share:.0%} of the rows are lost or cut at --data.max_length={limit} "
            f"({lost or 'cut'}): raise it{_as_far(patient, longest)}"
        )
    else:
        yield ok(f"{told}; the limit is {limit}")
    yield from _positions(patient, limit, longest)


def _as_far(patient: Patient, longest: int) -> str:
    """To the longest row, or as far as the models go."""
    most = min([longest, *(p for p in _models(patient).values() if p is not None)])
    return f" to {longest} to keep all" if most == longest else f", at most to {most} (positions)"


def _positions(patient: Patient, limit: int, longest: int) -> Iterator[Finding]:
    for who, positions in _models(patient).items():
        if positions is None or limit <= positions:
            continue
        if min(longest, limit) > positions:
            yield problem(
                f"rows have up to {min(longest, limit)} tokens and the {who} has {positions} "
                f"positions: set --data.max_length={positions} and a --data.truncation"
            )
        else:
            yield warning(
                f"--data.max_length={limit} is above the {who}'s {positions} positions: set "
                f"--data.max_length={positions}"
            )


def _models(patient: Patient) -> Mapping[str, int | None]:
    """Positions of each model, as their configurations say; None where they do not."""
    spec = patient.distiller.spec
    found: dict[str, int | None] = {}
    name = "max_position_embeddings"
    if spec.path is not None:
        config = loading.load_config(spec.path, spec.revision).get_text_config()
        found["student"] = spec.overrides.get(name, getattr(config, name, None))
    elif spec.config is not None:
        found["student"] = {**spec.config, **spec.overrides}.get(name)
    path = getattr(patient.distiller.teacher, "path", None)
    if path is not None and patient.asked:
        config = loading.load_config(path).get_text_config()
        found["teacher"] = getattr(config, name, None)
    return found
