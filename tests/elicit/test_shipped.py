"""Every template of the library: it is rendered, its parser reads a good answer and no bad one."""

import json

import pytest

from kd_lightning.elicit.parsers import Malformed
from kd_lightning.elicit.pools import pool
from kd_lightning.elicit.template import FOLDER, Template

NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

RECORD = {
    "prompt": "What is 6 times 7?",
    "answer": "It is 41.",
    "reference": "42",
    "system": "Be exact.",
    "docs": ["Six sevens are forty-two.", {"text": "Seven is prime.", "title": "Seven"}],
    "demos": [{"prompt": "Name a river."}, {"prompt": "Count to 3."}],
    "records": [{"prompt": "Sort a list."}, {"prompt": "Sum a list."}],
    "persona": "a nurse",
    "topic": "bridges",
    "document": "Bridges carry roads.",
    "tools": [{"name": "calculator", "description": "works things out", "parameters": {}}],
    "history": [{"role": "user", "content": "And then?", "title": "The Bridge"}],
    "messages": [{"role": "user", "content": "Yes", "name": "for"}],
    "snippet": "def f(x):",
    "critique": "The product is wrong.",
    "principle": "Be right.",
    "text": "It is 42.",
    "aspects": {"truth": "is it so", "form": "is it short"},
    "first": "one",
    "second": "two",
    "options": [{"label": "A", "text": "one"}, {"label": "B", "text": "two"}],
    "side": "for",
    "candidates": ["It is 41.", "It is 42."],
    "aspect": "truth",
    "question": "is it so",
    "errors": "AssertionError",
}

TASK = "<task>Name three rivers of Asia.</task>"
ERRORS = [{"span": "41", "kind": "sum", "severity": "major", "explanation": "42"}]
CALL = '<call>{"name": "calculator", "arguments": {"expression": "6*7"}}'

ANSWERS = {
    "agent": (f"I work it out. {CALL}", "<call>calculator(6*7)"),
    "answer": ("42", " "),
    "assistant": ("42", ""),
    "compare": ("A errs. Better: B", "B"),
    "conclude": ("Both have a point.", ""),
    "constitutional_critique": ("It is not right.", ""),
    "constitutional_revise": ("It is 42.", ""),
    "critique": ("The product is 42.\nVerdict: revise", "Fine.\nVerdict: perhaps"),
    "debate": ("I say yes.", ""),
    "error_spans": (json.dumps(ERRORS), "There are none."),
    "evolve_breadth": (TASK, "Name three rivers."),
    "evolve_concretise": (TASK, "<task>Name three rivers."),
    "evolve_constraints": (TASK, f"{TASK} or {TASK}"),
    "evolve_deepen": (TASK, "<task></task>"),
    "evolve_reasoning": (TASK, "Sorry."),
    "explain": ("6 * 7 is 42, because", ""),
    "from_document": ("<request>Write on bridges.</request>", "Write on bridges."),
    "from_history": ("<wish>I look for calm films.</wish>", "calm films"),
    "from_tools": (
        '<request>6*7?</request>\n<call>{"name": "c"}</call>',
        "<request>6*7?</request>",
    ),
    "from_topic": ("Why do arches hold?\nHow long is the longest?", "\n"),
    "fuse": ("Sort a list and sum it.", "IMPOSSIBLE"),
    "grounded": ("42", ""),
    "judge_complexity": ("One step. Score: 1", "Score: 9"),
    "judge_quality": ("Wrong. Score: 1", "Score: good"),
    "oss_instruct": ("## Problem\nDouble x.\n## Solution\nx + x", "Double x: x + x"),
    "persona": ("How do I sleep by day?", ""),
    "prefer": ("A", "Both"),
    "rank": ("B is right. Ranking: B > A", "Ranking: B"),
    "rate_together": ("One errs.\nText 1: 2\nText 2: 4", "Text 2: 4\nText 1: 2"),
    "refine_code": ("```python\nx = 1\n```", ""),
    "rate": ("truth: 2\nform: 5", "truth: two"),
    "rationale": ("6 * 7 = 42\nAnswer: 42", "42"),
    "rationalise": ("6 * 7 = 42\nAnswer: 42", "Answer: 42"),
    "reflect_instruction": (
        "<review>Too easy.</review><task>What is 66 * 77?</task><response>5082</response>",
        "<review>Too easy.</review><task>What is 66 * 77?</task>",
    ),
    "reflect_response": ("<review>No.</review><response>42</response>", "42"),
    "revise": ("It is 42.", ""),
    "score": ("7", "7 of 9, I think"),
    "self_chat": ("[Human] 6 * 7?\n[AI] 42.", "Human: 6 * 7?\nAI: 42."),
    "self_instruct": ("1. Name a lake.\n2. Count to 9.\n3. Sing.\n4. Add.", "Name a lake."),
    "self_verify": ("7 * 6 = 42. Correct: no", "Correct: maybe"),
    "subtopics": ("arches\ncables", "arches"),
    "summarise_evidence": ("Six sevens are forty-two.", ""),
    "user_simulator": ("And 7 times 8?", ""),
}


def test_every_template_stands_in_the_table():
    assert sorted(ANSWERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_rendered_and_its_answers_read(name):
    template = Template(name)
    prompt = template.prompt(RECORD, "r")
    text = "\n".join(message.content for message in prompt.messages)
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text
    good, bad = ANSWERS[name]
    assert template.parser.parse(good)
    with pytest.raises(Malformed):
        template.parser.parse(bad)
    json.dumps(template.settings())


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_what_it_is_about(name):
    """Each value that stands in the file stands in the question; without it, none is asked."""
    from kd_lightning.errors import KDError

    template = Template(name)
    with pytest.raises(KDError, match=r"undefined|needs"):
        template.prompt({}, "r")


def test_pools_of_the_library_are_texts():
    for path in FOLDER.glob("*.yaml"):
        entries = pool(path.stem)
        assert all(isinstance(entry, str) and entry for entry in entries)
        assert len(set(entries)) == len(entries) > 5
