"""Whether a value is as a JSON schema says: the part of the language that tool calls use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.errors import KDError

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int,),
}
_SHAPES: dict[str, tuple[type, ...]] = {
    "properties": (dict,),
    "additionalProperties": (dict, bool),
    "items": (dict, bool),
    "not": (dict, bool),
    "type": (str, list),
    "pattern": (str,),
    "uniqueItems": (bool,),
    **dict.fromkeys(("enum", "required", "anyOf", "oneOf", "allOf"), (list,)),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), (int,)),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (int, float)),
}
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "format"}
_RULES = {*_SHAPES, "const"}


def check_schema(schema: Any, place: str = "the schema") -> None:
    """Refuse a schema with a rule that is not looked at here: nothing passes by an oversight."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise KDError(f"{place} must be an object, not {schema!r}")
    if odd := sorted(set(schema) - _RULES - _NOTES):
        raise KDError(
            f"{place} has {odd[0]!r}, which is not supported: use {', '.join(sorted(_RULES))}"
        )
    for name, shapes in _SHAPES.items():
        if name in schema and not isinstance(schema[name], shapes):
            raise KDError(f"{place}.{name} must be a {shapes[0].__name__}, not {schema[name]!r}")
    try:
        re.compile(schema.get("pattern", ""))
    except re.error as error:
        raise KDError(f"{place}.pattern is no regular expression ({error})") from None
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise KDError(f"{place} has the type {kind!r}: use {', '.join(_TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{place}.{name}")
    for name in ("items", "additionalProperties", "not"):
        if name in schema:
            check_schema(schema[name], f"{place}.{name}")
    for name in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(name, []):
            check_schema(inner, f"{place}.{name}")


def faults(value: Any, schema: Any, place: str = "value") -> Iterator[str]:
    """What is wrong with a value, in order; nothing where it is as the schema says."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{place} is not allowed"
        return
    kinds = schema.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(value, kind) for kind in kinds):
            yield f"{place} is no {' or '.join(kinds)}"
            return
    if "enum" in schema and not any(_equal(value, other) for other in schema["enum"]):
        yield f"{place} is none of the allowed values"
    if "const" in schema and not _equal(value, schema["const"]):
        yield f"{place} is not the allowed value"
    if isinstance(value, dict):
        yield from _object(value, schema, place)
    elif isinstance(value, list):
        yield from _array(value, schema, place)
    elif isinstance(value, str):
        yield from _string(value, schema, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema, place)
    yield from _joined(value, schema, place)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _equal(a: Any, b: Any) -> bool:
    """As JSON: true is not 1."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


def _object(value: dict[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            yield f"{place} has no {name}"
    for name, inner in value.items():
        if name in properties:
            yield from faults(inner, properties[name], f"{place}.{name}")
        else:
            rule = schema.get("additionalProperties", True)
            yield from faults(inner, rule, f"{place}.{name}")


def _array(value: list[Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{place} has too few items"
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{place} has too many items"
    twice = any(_equal(a, b) for i, a in enumerate(value) for b in value[:i])
    if schema.get("uniqueItems") and twice:
        yield f"{place} holds an item twice"
    for i, item in enumerate(value):
        yield from faults(item, schema.get("items", True), f"{place}.{i}")


def _string(value: str, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if len(value) < schema.get("minLength", 0):
        yield f"{place} is too short"
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{place} is too long"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{place} does not match its pattern"


def _number(value: float, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if value < low or (over is not None and value <= over):
        yield f"{place} is too small"
    if value > high or (under is not None and value >= under):
        yield f"{place} is too large"
    step = schema.get("multipleOf")
    if step and abs(value / step - round(value / step)) > 1e-9:
        yield f"{place} is no multiple of {step}"


def _joined(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    for inner in schema.get("allOf", []):
        yield from faults(value, inner, place)
    for name, most in (("anyOf", len(schema.get("anyOf", []))), ("oneOf", 1)):
        if name in schema:
            fitting = sum(not any(faults(value, inner, place)) for inner in schema[name])
            if not 1 <= fitting <= most:
                yield f"{place} fits {fitting} of {name}"
    if "not" in schema and not any(faults(value, schema["not"], place)):
        yield f"{place} is what it must not be"
