"""JSON as a schema says, and calls as tools allow."""

import json

import pytest

from kd_lightning.curate.json_schema import check_schema, faults
from kd_lightning.curate.verify_json import JSONSchema
from kd_lightning.curate.verify_tools import ToolCall
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, texts, work


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 2.0], [1.5, "1", True, None]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": ["string", "null"]}, ["", None], [0, []]),
        ({"enum": [1, "a", [1]]}, [1, "a", [1]], [True, "b", [True]]),
        ({"const": {"a": 1}}, [{"a": 1}], [{"a": True}, {"a": 1, "b": 2}]),
        ({"minimum": 1, "exclusiveMaximum": 3}, [1, 2.9, "x"], [0.9, 3]),
        ({"maximum": 1, "exclusiveMinimum": -1}, [1, 0], [1.1, -1]),
        ({"multipleOf": 0.1}, [0.3, 1], [0.25]),
        ({"minLength": 2, "maxLength": 3, "pattern": "^a"}, ["ab", 5], ["a", "abcd", "ba"]),
        ({"items": {"type": "integer"}}, [[1], []], [["a"]]),
        ({"minItems": 1, "maxItems": 2}, [[1]], [[], [1, 2, 3]]),
        ({"uniqueItems": True}, [[1, True]], [[1, 1.0]]),
        (
            {"properties": {"a": {"type": "string"}}, "required": ["a"],
             "additionalProperties": False},
            [{"a": ""}],
            [{}, {"a": 1}, {"a": "", "b": 1}],
        ),
        ({"anyOf": [{"type": "string"}, {"minimum": 3}]}, ["a", 3], [2]),
        ({"oneOf": [{"minimum": 2}, {"maximum": 4}]}, [1, 5], [3]),
        ({"allOf": [{"minimum": 2}, {"maximum": 4}]}, [3], [1, 5]),
        ({"not": {"type": "null"}}, [1], [None]),
        (True, [1], []),
        (False, [], [1]),
    ],
    ids=str,
)  # fmt: skip
def test_values_against_schemas(schema, good, bad):
    check_schema(schema)
    for value in good:
        assert not list(faults(value, schema)), value
    for value in bad:
        assert list(faults(value, schema)), value


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#/a"}, {"type": "text"}, {"properties": {"a": {"if": {}}}}, {"items": [{}]}, 3,
     {"pattern": "("}, {"minLength": "2"}, {"anyOf": [{"patternProperties": {}}]}],
    ids=str,
)  # fmt: skip
def test_what_is_not_looked_at_is_refused(schema):
    with pytest.raises(KDError):
        check_schema(schema)


PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_json_answers():
    rows = texts('{"age": 3}', 'Sure:\n```json\n{"age": 3}\n```', '{"age": "3"}', "age 3",
                 '{"age": NaN}', "[" * 100_000, field="answer")  # fmt: skip
    kept, fallen = ran(JSONSchema(PERSON), rows)
    assert kept == ["r0", "r1"]
    assert fallen == {"not as the schema says": ["r2"], "no JSON": ["r3", "r4", "r5"]}
    told = JSONSchema(PERSON, mode="score", into="ok").run(rows[2:3], work())[0]
    assert (told["ok"], told["errors"]) == (0.0, "answer.age is no integer")


def test_each_record_may_hold_its_schema():
    rows = records(
        {"answer": "3", "schema": {"type": "integer"}},
        {"answer": "3", "schema": json.dumps({"type": "string"})},
        {"answer": "3", "schema": {"type": "text"}},
        {"answer": "3", "schema": "{"},
        {"answer": "3"},
    )
    kept, fallen = ran(JSONSchema(), rows)
    assert kept == ["r0"]
    assert fallen == {
        "not as the schema says": ["r1"],
        "unusable schema": ["r2", "r3"],
        "no schema": ["r4"],
    }


TOOLS = [
    {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}, "required": ["a"]}},
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"additionalProperties": False}},
    },
]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"name": "add", "arguments": {"a": 1}}, ""),
        ({"name": "add", "arguments": '{"a": 1}'}, ""),
        ([{"function": {"name": "now", "arguments": "{}"}}, {"name": "now"}], ""),
        ({"name": "sub", "arguments": {}}, "unknown tool"),
        ({"name": "add", "arguments": {"a": "1"}}, "wrong arguments"),
        ({"name": "add"}, "wrong arguments"),
        ({"name": "add", "arguments": [1]}, "wrong arguments"),
        ([{"name": "now"}, {"name": "now", "arguments": {"x": 1}}], "wrong arguments"),
        ({"name": "add", "arguments": "{"}, "no tool call"),
        ([], "no tool call"),
        ({"tool": "add"}, "no tool call"),
        ("add(1)", "no tool call"),
    ],
    ids=str,
)
def test_calls_against_tools(answer, reason):
    rows = records({"answer": json.dumps(answer), "tools": TOOLS})
    assert list(ran(ToolCall(), rows)[1]) == ([reason] if reason else [])
    assert list(ran(ToolCall(TOOLS), rows)[1]) == ([reason] if reason else [])


def test_the_expected_call():
    right = {"name": "add", "arguments": {"a": 1}}
    rows = records(
        {"answer": json.dumps({"name": "add", "arguments": '{"a": 1}'}), "call": right},
        {"answer": json.dumps({"name": "add", "arguments": {"a": 2}}), "call": right},
        {"answer": json.dumps(right), "call": "{"},
        {"answer": json.dumps(right)},
    )
    kept, fallen = ran(ToolCall(TOOLS, expected="call"), rows)
    assert kept == ["r0"]
    assert fallen == {
        "not the expected call": ["r1"],
        "unusable call": ["r2"],
        "no call": ["r3"],
    }


def test_broken_tools_are_the_users_or_the_records_fault():
    with pytest.raises(KDError, match="needs a name"):
        ToolCall([{"title": "add"}])
    rows = records({"answer": "{}", "tools": [{"title": "add"}]}, {"answer": "{}", "tools": [3]})
    assert ran(ToolCall(), rows)[1] == {"unusable tools": ["r0", "r1"]}
