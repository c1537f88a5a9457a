"""Agents that speak in turn, and tools that they call."""

import json
from itertools import pairwise

import pytest

from kd_lightning.elicit import Converse, Debate, WithTools
from kd_lightning.elicit.conversation import Agent
from kd_lightning.elicit.executors import Calculator, Lookup, ToolError
from kd_lightning.errors import KDError
from tests.elicit.kit import Rule, last, records, run, whole


def talker(request):
    """A user that asks twice and ends; an assistant that counts what it sees."""
    own = sum(m.role == "assistant" for m in request.prompt.messages)
    if "You play the part of a person" in whole(request):
        return f"question {own + 1}?" if own < 2 else "Fine. [END] never read"
    return f"reply {own + 1} to {last(request)}"


def test_turns_alternate_until_somebody_ends(tmp_path):
    generator = Rule(talker)
    made, _ = run(Converse(turns=10), records("bread"), tmp_path, teacher=generator)
    assert [(t["role"], t["content"]) for t in made[0]["messages"]] == [
        ("user", "question 1?"),
        ("assistant", "reply 1 to question 1?"),
        ("user", "question 2?"),
        ("assistant", "reply 2 to question 2?"),
    ]
    assert len(generator.asked) == 5, "what stood before [END] is the user's and not answered"


def test_each_sees_its_own_turns_as_the_assistant_s(tmp_path):
    generator = Rule(talker)
    run(Converse(turns=4), records("bread"), tmp_path, teacher=generator)
    roles = [[m.role for m in request.prompt.messages] for request in generator.asked]
    assert roles == [
        ["system", "user"],
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user"],
    ]


def test_all_conversations_of_a_turn_are_asked_together(tmp_path):
    generator = Rule(talker)
    made, _ = run(Converse(turns=4), records(*"abc"), tmp_path, teacher=generator)
    assert len(made) == 3
    heads = ["person" in whole(r) for r in generator.asked]
    assert heads == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3


def test_a_value_may_open_and_generators_differ(tmp_path):
    agents = {
        "user": Agent("user_simulator", "user", "student"),
        "assistant": Agent("assistant", "assistant"),
    }
    student, teacher = Rule(talker), Rule(talker)
    step = Converse(agents, turns=4, opens="prompt")
    assert set(step.needs()) == {"student", "teacher"}
    made, _ = run(step, records("Hello?"), tmp_path, student=student, teacher=teacher)
    turns = made[0]["messages"]
    assert turns[0]["content"] == "Hello?" and turns[1]["content"] == "reply 1 to Hello?"
    assert len(student.asked) == 1 and len(teacher.asked) == 2
    with pytest.raises(KDError, match="no question to open with"):
        run(Converse(agents, opens="question"), records("a"), tmp_path, student=student,
            teacher=teacher)  # fmt: skip


def test_short_and_broken_conversations_fall(tmp_path):
    def rule(request):
        if "mute" in whole(request):
            return ""
        return "[END]" if "hasty" in whole(request) else talker(request)

    made, work = run(Converse(), records("bread", "mute", "hasty"), tmp_path, teacher=Rule(rule))
    assert [r.id for r in made] == ["r0"]
    assert work.tally.dropped == {
        "malformed: the answer is empty": 1, "fewer than 2 turns": 1,
    }  # fmt: skip


def test_drawn_speakers_never_follow_themselves(tmp_path):
    agents = {
        name: Agent("debate", "assistant", given={"side": name}) for name in ("for", "against", "?")
    }
    step = Converse(agents, turns=8, policy="drawn")
    rule = Rule(lambda r: f"point {len(r.prompt.messages)}")
    made, _ = run(step, records(*"abcdef"), tmp_path, teacher=rule)
    orders = {tuple(t["name"] for t in r["messages"]) for r in made}
    assert len(orders) > 1
    assert all(a != b for order in orders for a, b in pairwise(order))


def test_a_debate_has_two_sides(tmp_path):
    generator = Rule(lambda r: f"I am {'for' if 'argue for' in whole(r) else 'against'}.")
    made, _ = run(Debate(), records("Cats are liquid."), tmp_path, teacher=generator)
    told = [(t["name"], t["content"]) for t in made[0]["messages"]]
    assert told == [("for", "I am for."), ("against", "I am against.")] * 2


def test_agents_are_checked():
    with pytest.raises(KDError, match="two agents"):
        Converse({"a": Agent("assistant", "assistant")})
    with pytest.raises(KDError, match="role: assistant"):
        Converse({x: Agent("assistant", "user") for x in "ab"})
    with pytest.raises(KDError, match="least"):
        Converse(turns=1)


# ---- tools ----------------------------------------------------------------------------------

TOOLS = [Calculator(), Lookup({"Rome": "Italy"})]


def call(name, **arguments):
    return f"<call>{json.dumps({'name': name, 'arguments': arguments})}"


def agent(request):
    """Wrong tool first, then a wrong call, then the sum; then it says the result."""
    results = [m.content for m in request.prompt.messages if m.role == "user"][1:]
    steps = [call("abacus", x=1), call("calculator", expression="6 x 7"),
             "Now. " + call("calculator", expression="6 * 7")]  # fmt: skip
    return steps[len(results)] if len(results) < 3 else f"It is {results[-1]}."


def test_an_agent_calls_is_told_and_answers(tmp_path):
    generator = Rule(agent)
    made, work = run(WithTools(TOOLS), records("6*7?", system="S"), tmp_path, teacher=generator)
    assert made[0]["answer"] == "It is 42."
    turns = made[0]["messages"]
    assert [t["role"] for t in turns] == ["system", "user", *["assistant", "tool"] * 3, "assistant"]
    assert [t["content"] for t in turns if t["role"] == "tool"] == [
        "error: there is no such tool: call one of calculator, lookup",
        "error: the expression cannot be read",
        "42",
    ]
    assert turns[6]["content"].startswith("Now. <call>") and turns[6]["content"].endswith("</call>")
    assert work.tally.notes["wrong calls"] == 2
    assert [t["name"] for t in made[0]["tools"]] == ["calculator", "lookup"]
    assert generator.asked[0].sampling.stop == ("</call>",)


def test_an_agent_that_never_answers_falls(tmp_path):
    looped = Rule(lambda r: call("lookup", key="rome"))
    made, work = run(WithTools(TOOLS, calls=2), records("a"), tmp_path, teacher=looped)
    assert not made and work.tally.dropped == {"no answer after 2 calls": 1}
    assert len(looped.asked) == 3


def test_results_of_its_own_making_are_malformed(tmp_path):
    made, work = run(
        WithTools(TOOLS), records("a"), tmp_path,
        teacher=Rule(lambda r: call("lookup", key="Rome") + "</call> Italy! So: Italy."),
    )  # fmt: skip
    assert not made and work.tally.dropped == {"malformed: text behind the call": 1}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3", "7"),
        ("-(2 ** 10) // 3", "-342"),
        ("7 / 2", "3.5"),
        ("0.1 + 0.2", "0.3"),
        ("17 % 5", "2"),
        ("2 ** 0.5", "1.41421356237"),
    ],
)
def test_the_calculator_works_things_out(expression, result):
    assert Calculator().run({"expression": expression}) == result


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "a + 1",
        "'a' * 3",
        "[1] * 9",
        "True + 1",
        "(1).__class__",
        "9 ** 9 ** 9 ** 9",
        "10 ** 400",
        "1e300 * 1e300",
        "1 / 0",
        "0 ** -1",
        "(-8) ** 0.5",
        "lambda: 1",
        "1 if 1 else 2",
        "",
        "1 +",
        "(" * 150,
        "1" * 201,
        None,
        3,
    ],
)
def test_the_calculator_does_nothing_else(expression):
    with pytest.raises(ToolError):
        Calculator().run({"expression": expression})


def test_a_table_is_looked_up():
    table = Lookup({" Rome": "Italy"}, "atlas")
    assert table.run({"key": "ROME "}) == "Italy" and table.spec["name"] == "atlas"
    for wrong in ({"key": "Paris"}, {"key": 1}, {}):
        with pytest.raises(ToolError):
            table.run(wrong)
    with pytest.raises(KDError, match="empty"):
        Lookup({})
