"""What holds for every curator, whatever it looks at."""

import inspect
import json
import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

import kd_lightning.curate
from kd_lightning.curate.corpus import Corpus
from kd_lightning.curate.rules import Length
from kd_lightning.knowledge.records import Record, origin
from kd_lightning.knowledge.step import Step
from kd_lightning.security import sandbox
from tests.curate.kit import Rule, ids, work
from tests.curate.test_verify import Sums

ARGUMENTS = {
    "Compose": {"values": {"shown": "{{ prompt }}!"}},
    "ConditionOnScore": {"tokens": ["<0>", "<1>"]},
    "ConditionOnSource": {"tokens": {"x": "<x>"}},
    "Copy": {"names": {"answer": "before"}},
    "HasFields": {"fields": ["answer"]},
    "KCentre": {"k": 3},
    "Keep": {"fields": ["prompt", "answer"]},
    "Keywords": {"blacklist": ["two"]},
    "PairsBySource": {"order": ["x", "y"]},
    "Product": {"fields": ["score", "scores.0"], "into": "both"},
    "Quantile": {"low": 0.2},
    "Rename": {"names": {"answer": "said"}},
    "Rules": {"rules": [Length(min_words=2)]},
    "Sample": {"k": 3},
    "Set": {"values": {"licence": "MIT"}},
    "Stratified": {"k": 1},
    "TakeBetter": {"fields": {"revision": "answer"}, "score": "scores.0", "than": "score"},
    "Threshold": {"least": 2.0},
    "Top": {"k": 3},
    "WeightedSum": {"fields": {"scores.0": 1.0, "score": -1.0}, "into": "gap"},
}
"""How to build a step that has no defaults; those that read a file are built in `build`."""

CHANGING = {"Groups", "Flatten", "Mix"}
"""Steps that do not give as many as they take less those that fell."""

CLASSES = [getattr(kd_lightning.curate, name) for name in kd_lightning.curate.__all__]
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


def arguments(cls: type, folder: Path) -> dict:
    path = folder / "texts.jsonl"
    path.write_text('{"prompt": "what is number three plus four of all of these"}\n')
    reading = {
        "Decontaminate": {"against": {"exam": Corpus(str(path))}, "ngram": 5},
        "DecontaminateSubstring": {"against": {"exam": Corpus(str(path))}, "fields": "prompt"},
        "Mix": {"files": {"other": str(path)}, "shares": {"here": 5.0, "other": 1.0}},
    }
    return {**ARGUMENTS, **reading}.get(cls.__name__, {})


def plainly(value):
    """As a YAML file says it."""
    if isinstance(value, Corpus):
        return {"path": value.path}
    if isinstance(value, Length):
        return {"class_path": "Length", "init_args": {"min_words": value.min_words}}
    if isinstance(value, dict):
        return {name: plainly(inner) for name, inner in value.items()}
    return [plainly(inner) for inner in value] if isinstance(value, list) else value


def build(cls: type, folder: Path) -> Step:
    try:
        return cls(**arguments(cls, folder))
    except TypeError as error:
        pytest.fail(
            f"{cls.__name__} cannot be built from its defaults ({error}): give every argument a "
            "default, or add the class to ARGUMENTS in tests/curate/test_curator_contract.py"
        )


def rows() -> list[Record]:
    """Some of each kind: whole, wrong, doubled, empty."""
    made = []
    for i in range(8):
        values = {
            "prompt": f"what is number {i % 7} plus four",
            "system": "be brief",
            "answer": f"it is {i + 4}." if i != 5 else "I'm sorry, but no",
            "reference": str(i + 4 - i // 4),
            "revision": f"it is {i}!",
            "candidates": [f"{i}", f"{i + i % 3}", f"it is {i}"],
            "scores": [i, 1, 2],
            "sources": ["x", "y", "x"],
            "source": "xyz"[i % 3],
            "score": i % 4,
            "topic": "ab"[i % 2],
            "ratings": {"a": i, "b": 2},
            "verdicts": ["A", "AB"[i % 2]],
            "ranking": [0, 1, 2],
            "other_ranking": [0, 1, 2] if i % 2 else [2, 1, 0],
            "agreed": [i % 3, 1] if i % 3 != 1 else "tie",
            "tests": "assert True",
            "schema": {"type": "integer"},
            "tools": [{"name": "f", "parameters": {}}],
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant" if i % 2 else "user", "content": "a"},
            ],
        }
        made.append(Record(f"s{i}", values, (origin("seeds", [f"file:{i}"]),)))
    return [*made, Record("empty", {})]


def place(seed: int = 0):
    rule = Rule(likely=lambda prompt, word: 1 / (2 + len(word)))
    return work(seed, teacher=rule, student=rule, skill=Sums(), allow_code=True)


def run(cls, folder):
    if cls.__name__ == "UnitTests" and sandbox.missing():
        pytest.skip(f"no sandbox: {sandbox.missing()}")
    at = place()
    return build(cls, folder).run(rows(), at), at


@every
def test_settings_are_json_and_tell_steps_apart(cls, tmp_path):
    step = build(cls, tmp_path)
    told = json.loads(json.dumps(step.settings()))
    assert told["class"] == cls.__name__
    given = set(inspect.signature(cls).parameters) - {"workers"}
    assert given <= set(told), "a setting that is not stored"
    assert step.digest() == build(cls, tmp_path).digest()
    for name, value in step.needs().items():
        assert name == vars(step)["generator"] and value
    assert not re.search(r" at 0x[0-9a-f]+", json.dumps(told)), "a setting without settings()"


@every
def test_a_configuration_builds_it(cls, tmp_path):
    built = build(cls, tmp_path)  # writes the files that the configuration names
    told = {name: plainly(value) for name, value in arguments(cls, tmp_path).items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--step", type=Step)
    config = parser.parse_object({"step": {"class_path": cls.__name__, "init_args": told}})
    assert parser.instantiate_classes(config).step.digest() == built.digest()


@every
def test_the_same_again(cls, tmp_path):
    (one, first), (two, second) = run(cls, tmp_path), run(cls, tmp_path)
    assert [r.as_row() for r in one] == [r.as_row() for r in two]
    assert first.tally == second.tally
    json.dumps([r.as_row() for r in one])


@every
def test_what_came_in_goes_out_or_falls(cls, tmp_path):
    made, at = run(cls, tmp_path)
    fallen = [record.id for record, _ in at.fallen]
    assert len(set(ids(made))) == len(made)
    assert all(reason and len(reason) < 80 for reason in at.tally.dropped)
    if cls.__name__ not in CHANGING:
        assert sorted(ids(made) + fallen) == sorted(ids(rows()))
    elif cls.__name__ == "Groups":
        together = at.tally.notes.get("records put together", 0)
        assert len(made) + together + len(fallen) == len(rows())


@every
def test_records_that_came_in_are_not_touched(cls, tmp_path):
    if cls.__name__ == "UnitTests" and sandbox.missing():
        pytest.skip(f"no sandbox: {sandbox.missing()}")
    given, before = rows(), json.dumps([r.as_row() for r in rows()])
    build(cls, tmp_path).run(given, place())
    assert json.dumps([r.as_row() for r in given]) == before


@every
def test_those_that_stay_keep_their_order(cls, tmp_path):
    if cls.__name__ in {*CHANGING, "Curriculum"}:
        pytest.skip("it puts them in another order")
    made, _ = run(cls, tmp_path)
    places = [ids(rows()).index(name) for name in ids(made)]
    assert places == sorted(places)


@every
def test_no_records_no_error(cls, tmp_path):
    if cls.__name__ == "Mix":
        pytest.skip("it brings its own")
    assert build(cls, tmp_path).run([], place()) == []


@every
def test_arguments_are_documented(cls):
    told = inspect.getdoc(cls.__init__) or ""
    for name in list(inspect.signature(cls).parameters):
        assert f"{name}:" in told, f"{cls.__name__} does not say what {name} is"


def test_there_are_some_and_each_says_what_it_is_for():
    assert len(CLASSES) > 50
    assert all(cls.__doc__ and cls.__doc__ != Step.__doc__ for cls in CLASSES)
