"""Parsers: what they read, and what they refuse."""

import inspect
import json

import pytest

from kd_lightning.elicit import parsers as family
from kd_lightning.elicit.parsers import (
    Call,
    Choice,
    Final,
    JSONObject,
    Lines,
    Malformed,
    Marks,
    Number,
    Numbered,
    Parser,
    Ranking,
    Ratings,
    Sections,
    Spans,
    Tagged,
    Text,
    Transcript,
)

P = {"prompt": "## P", "answer": "## S"}
ERROR = {"span": "x", "kind": "k", "severity": "minor", "explanation": "e"}
CALL = {"name": "f", "arguments": {"a": 1}}

GOOD = [
    (Marks(), "Text 1: 4\nwhy not\nText 2: N/A", [{"marks": [4, None]}]),
    (Text(), " Paris.\n", [{"answer": "Paris."}]),
    (Text("prompt", refuse=("NO",)), "Now.", [{"prompt": "Now."}]),
    (Lines(), "1. One\n\n- Two\n3) Three", [{"prompt": p} for p in ("One", "Two", "Three")]),
    (Lines(), "2 apples", [{"prompt": "2 apples"}]),
    (Numbered("q"), "Sure:\n1. One\n2) Two\nmore", [{"q": "One"}, {"q": "Two\nmore"}]),
    (Numbered("q"), "1. Steps:\n1. a\n5. b\n2. Two", [{"q": "Steps:\n1. a\n5. b"}, {"q": "Two"}]),
    (Numbered("q", start=3), "3. One\n4. Two", [{"q": "One"}, {"q": "Two"}]),
    (Final(), "a\nAnswer: 3\nAnswer: 4", [{"rationale": "a\nAnswer: 3", "answer": "4"}]),
    (Final(options=("keep", "go")), "a\nAnswer: **Keep**.", [{"rationale": "a", "answer": "keep"}]),
    (Final(), "a\n**Answer:** 4", [{"rationale": "a", "answer": "4"}]),
    (Final(), "a\n**Answer: 4**", [{"rationale": "a", "answer": "4"}]),
    (Final(), "a\nAnswer: **4**", [{"rationale": "a", "answer": "**4**"}]),
    (Number(1, 5), "**Score: 4**", [{"score": 4}]),
    (Sections(P), "hm\n## P\nadd\n## S\nx + y\n", [{"prompt": "add", "answer": "x + y"}]),
    (Sections(P, end="##E"), "## P a\n## S b ##E c", [{"prompt": "a", "answer": "b"}]),
    (Tagged({"a": "x"}), "so <x> 1\n2 </x> there", [{"a": "1\n2"}]),
    (
        Tagged({"a": "x", "b": "y"}, many=True),
        "<x>1</x><y>2</y> <x>3</x><y>4</y>",
        [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}],
    ),
    (
        Transcript(),
        "[Human] Hi\nthere\n[AI]: Yes?\n",
        [
            {
                "messages": [
                    {"role": "user", "content": "Hi\nthere"},
                    {"role": "assistant", "content": "Yes?"},
                ]
            }
        ],
    ),
    (
        Transcript(whole=False),
        "[Human] a\n[AI] b\n[Human] c",
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    ),
    (Number(1, 5), "Good.\nScore: 4/5", [{"score": 4}]),
    (Number(0, 1, marker=""), " 0.5 ", [{"score": 0.5}]),
    (Number(1, 5, before="why"), "Good.\nScore: 4.0.", [{"why": "Good.", "score": 4}]),
    (Choice(("A", "B", "tie"), "Better:"), "A is. Better: TIE.", [{"verdict": "tie"}]),
    (Choice(("yes", "no")), "Yes", [{"verdict": "yes"}]),
    (Ranking(), "C is weak.\nRanking: B > A > C.", [{"ranking": ["B", "A", "C"]}]),
    (Ranking(marker=""), "[1] > [2]", [{"ranking": ["1", "2"]}]),
    (Ratings(), "- Truth: 4\n**Form**: 5\nwhy", [{"ratings": {"truth": 4, "form": 5}}]),
    (JSONObject(("a",)), 'ok {not} {"a": {"b": "}"}} {"a": 2}', [{"a": {"b": "}"}}]),
    (Spans(), f"Here: {json.dumps([ERROR])}", [{"errors": [ERROR]}]),
    (Spans(), "[]", [{"errors": []}]),
    (Call(), " 42 ", [{"answer": "42"}]),
    (Call(), f"Hm <call>{json.dumps(CALL)}", [{"answer": "Hm ", "call": CALL}]),
    (Call(), f"<call>{json.dumps(CALL)}</call>\n", [{"answer": "", "call": CALL}]),
]

BAD = [
    (Marks(), "good", "no ratings"),
    (Marks(), "Text 2: 4\nText 1: 3", "in order"),
    (Marks(), "Text 1: 9", "not between 1 and 5"),
    (Text(), " \n", "is empty"),
    (Text(shortest=5), "four", "shorter than 5"),
    (Text(refuse=("NO",)), "NO way", "says NO"),
    (Lines(fewest=2), "one", "fewer than 2"),
    (Numbered(), "One\nTwo", "fewer than 1"),
    (Numbered(), "1. One\n2. ", "numbered items|fewer"),
    (Numbered(fewest=3), "1. One\n2. Two\n4. Four", "fewer than 3"),
    (Final(), "It is 4.", "no Answer:"),
    (Final(), "Answer: 4", "precedes"),
    (Final(), "So\nAnswer:  ", "follows"),
    (Final(), "So I write Answer: 4", "no Answer:"),
    (Final(options=("keep",)), "a\nAnswer: keep it", "none of keep"),
    (Sections(P), "## P a", "## S missing"),
    (Sections(P), "## S b\n## P a", "not in its place"),
    (Sections(P), "## P a\n## S b\n## S c", "more than once"),
    (Sections(P), "## P \n## S b", "is empty"),
    (Sections(P, end="##E"), "## P a\n## S b", "##E missing"),
    (Tagged({"a": "x"}), "1", "<x> missing"),
    (Tagged({"a": "x"}), "<x>1", "not closed"),
    (Tagged({"a": "x"}), "<x>1</x><x>2</x>", "more than once"),
    (Tagged({"a": "x"}), "<x> </x>", "is empty"),
    (Tagged({"a": "x"}), "<x><x>1</x>", "not closed"),
    (Tagged({"a": "x", "b": "y"}, many=True), "<x>1</x><y>2</y><x>3</x>", "equal number"),
    (Transcript(), "Sure!\n[Human] a\n[AI] b", "before the first"),
    (Transcript(), "nothing", "no turns"),
    (Transcript(), "[AI] b\n[Human] a", "alternate"),
    (Transcript(), "[Human] a\n[Human] b\n[AI] c", "alternate"),
    (Transcript(), "[Human] a\n[AI] b\n[Human] c", "last turn"),
    (Transcript(), "[Human] a\n[AI] ", "a turn is empty"),
    (Transcript(fewest=4), "[Human] a\n[AI] b", "fewer than 4"),
    (Number(1, 5), "4", "no Score:"),
    (Number(1, 5), "Score: four", "no number"),
    (Number(1, 5), "Score: 4 or 5", "no number"),
    (Number(1, 5), "Score: 6", "not between 1 and 5"),
    (Number(1, 5), f"Score: {'9' * 400}", "not between"),
    (Number(1, 5), "Score: nan", "no number"),
    (Choice(("A", "B"), "Better:"), "Better: both", "none of A, B"),
    (Choice(("A", "B"), "Better:"), "A", "no Better:"),
    (Choice(("A", "B")), "A, because", "none of"),
    (Ranking(), "Ranking: A", "no ranking"),
    (Ranking(), "Ranking: A > B > A", "twice"),
    (Ranking(), "A > B", "no Ranking:"),
    (Ratings(), "Truth: high", "no ratings"),
    (Ratings(), "Truth: 6", "not between"),
    (Ratings(), "Truth: 4\ntruth: 5", "twice"),
    (JSONObject(("a",)), "a: 1", "no JSON object"),
    (JSONObject(("a",)), '{"a": ""}', "no a in"),
    (JSONObject(("a",)), '{"a": 1', "no JSON object"),
    (JSONObject(), '{"a": NaN}', "NaN"),
    (JSONObject(("a",), only=True), '{"a": 1, "b": 2}', "unknown keys"),
    (JSONObject(), "{" * 200_000, "no JSON object"),
    (JSONObject(), '{"a":' * 200_000, "no JSON object"),
    (Spans(), "none", "no JSON list"),
    (Spans(), '["x"]', "no object"),
    (Spans(), json.dumps([{**ERROR, "kind": ""}]), "without kind"),
    (Spans(), json.dumps([{**ERROR, "severity": "dire"}]), "none of minor, major"),
    (Call(), " ", "is empty"),
    (Call(), f"<call>{json.dumps(CALL)}</call> The result is 3", "behind the call"),
    (Call(), "<call>f(1)</call>", "no JSON"),
    (Call(), '<call>{"name": "f"}</call>', "not name and arguments"),
    (Call(), '<call>{"name": "f", "arguments": [1]}</call>', "not name and arguments"),
]


@pytest.mark.parametrize(("parser", "text", "items"), GOOD, ids=lambda v: type(v).__name__)
def test_what_is_read(parser, text, items):
    assert parser.parse(text) == items
    assert json.loads(json.dumps(items)) == items


@pytest.mark.parametrize(("parser", "text", "reason"), BAD, ids=lambda v: type(v).__name__)
def test_what_is_refused(parser, text, reason):
    with pytest.raises(Malformed, match=reason):
        parser.parse(text)


def test_every_parser_stands_in_both_tables():
    every = {c for n in family.__all__ if (c := getattr(family, n)) not in (Malformed, Parser)}
    for table in (GOOD, BAD):
        assert {type(parser) for parser, *_ in table} == every
    assert all(issubclass(c, Parser) and not inspect.isabstract(c) for c in every)


@pytest.mark.parametrize("parser", {type(p): p for p, *_ in GOOD}.values(), ids=str)
def test_any_text_is_read_or_refused(parser):
    """Never another error: what a generator writes is not in our hands."""
    pieces = ["<call>", "{", "[", "Answer:", "Score:", "1.", ">", "\x00", "\ud800", "## P", "[AI]"]
    for i, a in enumerate(pieces):
        for b in pieces[i:]:
            for text in (a + b, f"{a}\n{b}", f"{b} {a} {b}"):
                try:
                    assert parser.parse(text)
                except Malformed as refused:
                    assert str(refused)


@pytest.mark.parametrize("parser", {type(p): p for p, *_ in GOOD}.values(), ids=str)
@pytest.mark.parametrize(
    "text",
    [
        "</x>" * 50_000 + "<x>" * 50_000,
        "Score: 4" + " " * 200_000 + "x",
        "a " * 100_000,
        "\n" * 200_000 + "Answer",
        "1. " * 70_000,
        "[{" * 50_000,
    ],
    ids=range(6),
)
def test_a_long_hostile_answer_comes_to_an_end(parser, text):
    try:
        assert parser.parse(text)
    except Malformed as refused:
        assert str(refused)


def test_reasons_are_shared_by_many_answers():
    """A reason does not hold the answer, so that the card can count it."""
    for parser, text, _ in BAD:
        with pytest.raises(Malformed) as refused:
            parser.parse(text)
        assert len(str(refused.value)) < 80
