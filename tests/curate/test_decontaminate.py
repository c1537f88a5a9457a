"""Questions of a test among the records."""

import json

import pytest

from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.decontaminate import Decontaminate, DecontaminateSubstring
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, texts

LONG = "how many apples does ann have if she buys three bags of four apples each day"


@pytest.fixture
def exam(tmp_path):
    path = tmp_path / "exam.jsonl"
    told = [LONG, "Name the capital of France", "Yes or no"]
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in told))
    return Corpus(str(path), "question")


def test_thirteen_words_in_a_row(exam):
    told = LONG.split()
    rows = texts(
        "Well: " + " ".join(told[2:15]).upper() + "!",  # thirteen of them
        "Well: " + " ".join(told[2:14]),  # twelve
        " ".join(told[:8]) + " but " + " ".join(told[8:]),  # all, never thirteen together
    )
    kept, fallen = ran(Decontaminate({"exam": exam}), rows)
    assert kept == ["r1", "r2"]
    assert fallen == {"shares words with exam": ["r0"]}
    assert ran(Decontaminate({"exam": exam}, ngram=8), rows)[0] == []


def test_short_questions_stand_for_themselves(exam):
    rows = texts(
        "Please name the capital of France.",  # five words: looked for inside
        "Say yes or no to this",  # three words: as a whole only
        "Yes, or no?",
        "Name the capital of Spain",
    )
    assert ran(Decontaminate({"exam": exam}), rows)[0] == ["r1", "r3"]


def test_all_fields_are_looked_through(exam):
    rows = records(
        {"prompt": "x", "answer": LONG},
        {"messages": [{"role": "user", "content": LONG}]},
        {"notes": LONG},
    )
    assert ran(Decontaminate({"exam": exam}), rows)[0] == ["r2"]
    assert ran(Decontaminate({"exam": exam}, ["notes"]), rows)[0] == ["r0", "r1"]


def test_substring(exam):
    rows = texts(
        f"# {LONG.title()}\nprint(12)",
        " ".join(LONG.split()[:14]),
        "say: yes or no",
        "Yes or no",
        "rename the capital of francesca",
        field="answer",
    )
    kept, fallen = ran(DecontaminateSubstring({"exam": exam}), rows)
    assert kept == ["r1", "r2", "r4"]
    assert fallen == {"holds a text of exam": ["r0", "r3"]}


def test_settings_are_checked(exam):
    with pytest.raises(KDError, match="ngram must be at least 5"):
        Decontaminate({"exam": exam}, ngram=4)
