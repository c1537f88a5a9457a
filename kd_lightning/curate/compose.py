"""Values written out of other values: texts that the student shall see and no field holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.security.time_limit import TooSlowError, time_limit

SECONDS = 5.0
"""The longest that one text may take."""


class Compose(Step):
    """Write fields by Jinja templates over a record's values, in Jinja's sandbox.

    All are rendered over the record as it comes in. A list of templates makes a list of texts:
    with `Flatten` behind it, one record becomes several. A record without a value that is named
    falls.
    """

    def __init__(self, values: dict[str, str | list[str]]) -> None:
        """Store the settings.

        Args:
            values: Each field to the template of its text, or to a list of templates.
        """
        if not values:
            raise KDError("Compose has nothing to write: name a field and its template in values")
        if {"id", "lineage"} & set(values):
            raise KDError("Compose writes values, and id and lineage are none: use other names")
        for told in values.values():
            for source in [told] if isinstance(told, str) else told:
                _compiled(source)
        self.values = values

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = {
            name: _compiled(told) if isinstance(told, str) else [_compiled(one) for one in told]
            for name, told in self.values.items()
        }
        given = []
        for record in records:
            try:
                given.append(self._one(record, made, work))
            except jinja2.UndefinedError as error:
                work.drop(record, f"cannot be composed: {error.message}")
        return given

    def _one(self, record: Record, made: dict[str, Any], work: Work) -> Record:
        text = partial(_rendered, record=record)
        told: dict[str, Any] = {
            name: [text(one) for one in found] if isinstance(found, list) else text(found)
            for name, found in made.items()
        }
        return record.changed(work.name, **told)


def _compiled(source: str) -> jinja2.Template:
    room = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        return room.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise KDError(f"Compose: {source[:60]!r} is no Jinja ({error.message})") from None


def _rendered(text: jinja2.Template, record: Record) -> str:
    try:
        with time_limit(SECONDS):
            return text.render(dict(record.values))
    except jinja2.UndefinedError:
        raise
    except TooSlowError:
        raise KDError(f"Compose works longer than {SECONDS:g} seconds on {record.id}") from None
    except (jinja2.TemplateError, ArithmeticError, TypeError, KeyError, ValueError) as error:
        raise KDError(f"Compose cannot write record {record.id}: {error}") from None
