"""What holds for every elicitor: settings, needs, reasons, resuming, lineage."""

import inspect
import json

import pytest

from kd_lightning import elicit
from kd_lightning.curate.dedup import DedupExact
from kd_lightning.elicit import Canary, FromPool, Rate
from kd_lightning.elicit.executors import Calculator
from kd_lightning.elicit.template import FOLDER
from kd_lightning.knowledge.step import Step
from kd_lightning.teachers.generator import Kind
from kd_lightning.teachers.journal import Journal
from tests.elicit.kit import Rule, Stopped, last, records, run, whole
from tests.elicit.test_shipped import ANSWERS, RECORD

ASPECTS = {"truth": "is it so", "form": "is it short"}
ROWS = records(
    *(f"What is {i} times 7?" for i in range(4)),
    **{k: v for k, v in RECORD.items() if k not in ("prompt", "records", "demos", "options")},
    code="a = 1\nb = 2\nprint(a + b)",
)


def any_answer(request):
    """Depends on the question, as a generator's does."""
    return f"Well, {len(whole(request))} signs."


def tool_user(request):
    return ANSWERS["agent"][0] if len(request.prompt.messages) < 3 else "It is 42."


def reviewer(request):
    return ANSWERS["critique"][0] if "Verdict" in last(request) else f"{len(last(request))}"


def scored(request):
    return ANSWERS["rate"][0] if "Rate the answer" in last(request) else any_answer(request)


def evolved(request):
    return f"<task>{last(request)} And {request.sampling.seed % 100}?</task>"


def new_tasks(request):
    return "\n".join(f"{i}. Do {request.sampling.seed % 1000 + i}." for i in range(1, 5))


def turns(request):
    return "Enough. [END]" if len(request.prompt.messages) > 4 else any_answer(request)


STEPS = {
    "Ask": ({"template": "answer"}, any_answer),
    "Accepted": ({"filters": [DedupExact("answer")], "template": "answer", "generator": "teacher"},
                 any_answer),
    "BestOf": ({"scorer": Rate(ASPECTS, field="candidates"), "generator": "teacher"}, scored),
    "Canary": ({"judge": Rate(ASPECTS), "passes": 3}, lambda request: "truth: 1\nform: 2"),
    "Compare": ({}, None),
    "Converse": ({}, turns),
    "Debate": ({}, turns),
    "Evolve": ({"rounds": 2}, evolved),
    "FromPool": ({"target": 9, "batch": 2, "from_seeds": 2, "from_made": 1}, new_tasks),
    "Rate": ({"aspects": ASPECTS}, None),
    "Revise": ({"rounds": 2}, reviewer),
    "WithTools": ({"tools": [Calculator()]}, tool_user),
}  # fmt: skip
"""Arguments, and a rule of its own where one answer does not do."""

CLASSES = [getattr(elicit, name) for name in elicit.__all__ if name != "Features"]
"""Those that put questions; `Features` asks none (test_feature.py)."""
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
GROWING = ("Evolve", "FromPool")
"""They go on with what they have where an answer fails."""


def build(cls):
    return cls(**STEPS.get(cls.__name__, ({}, None))[0])


def speaker(cls, **more):
    rule = STEPS.get(cls.__name__, ({}, None))[1]
    step = build(cls)
    answer = None if rule else ANSWERS[step.template][0]
    return Rule(rule or (lambda request: answer), lambda request: (-1.0, -2.0), **more)


def rows_of(made):
    return [record.as_row() for record in made]


@every
def test_settings_and_needs(cls):
    step = build(cls)
    assert isinstance(step, Step) and step.digest() == build(cls).digest()
    assert json.loads(json.dumps(step.settings())) == step.settings()
    assert dict(step.needs()) == {
        "teacher": frozenset({Kind.CHOICES if cls.__name__ == "Prefer" else Kind.GENERATE})
    }
    for name in inspect.signature(cls).parameters:
        assert name == "more" or hasattr(step, name), f"{name} is not stored under its own name"


@every
def test_settings_follow_the_template_s_text(cls, tmp_path):
    """A changed file makes stored answers void, under an unchanged name."""
    told = json.dumps(build(cls).settings())
    arguments = STEPS.get(cls.__name__, ({}, None))[0]
    if cls.__name__ in ("Canary", "Converse", "Debate", "Evolve"):
        assert told.count('"digest"') >= 2 - (cls is Canary)
        return
    path = tmp_path / "own.jinja"
    source = (FOLDER / f"{build(cls).template}.jinja").read_text()
    path.write_text(source)
    before = cls(**{**arguments, "template": str(path)})
    digest = before.digest()
    path.write_text(source.replace("describes: ", "describes: now ", 1))
    assert before.digest() != digest


@every
def test_good_answers_make_records_with_their_descent(cls, tmp_path):
    generator = speaker(cls)
    made, work = run(build(cls), ROWS, tmp_path, teacher=generator)
    assert made and generator.asked
    if cls is Canary:
        assert rows_of(made) == rows_of(ROWS), "it looks, and changes nothing"
        return
    changed = [record for record in made if record.lineage]
    assert changed
    for record in changed:
        assert record.lineage[-1]["step"] == "step"
        assert record.lineage[-1]["from"]
    assert {record.lineage[0].get("by", "teacher") for record in changed} == {"teacher"}


@every
def test_the_same_again_is_the_same_and_asks_nothing(cls, tmp_path):
    made, _ = run(build(cls), ROWS, tmp_path, teacher=speaker(cls))
    again = speaker(cls)
    assert rows_of(run(build(cls), ROWS, tmp_path, teacher=again)[0]) == rows_of(made)
    assert not again.asked
    (tmp_path / "other").mkdir()
    fresh = run(build(cls), ROWS, tmp_path / "other", teacher=speaker(cls))[0]
    assert rows_of(fresh) == rows_of(made)


@every
def test_stopped_anywhere_it_goes_on_as_if_nothing_had_been(cls, tmp_path):
    whole_run = speaker(cls)
    (tmp_path / "whole").mkdir()
    want, _ = run(build(cls), ROWS, tmp_path / "whole", teacher=whole_run)
    total = len(whole_run.asked)
    for dies in sorted({0, 1, total // 3, total // 2, total - 1}):
        folder = tmp_path / str(dies)
        folder.mkdir()
        first, second = speaker(cls, dies=dies), speaker(cls)
        with pytest.raises(Stopped):
            run(build(cls), ROWS, folder, teacher=first)
        got, _ = run(build(cls), ROWS, folder, teacher=second)
        assert rows_of(got) == rows_of(want)
        assert len(first.asked) == dies and len(second.asked) == total - dies


@every
def test_bad_answers_are_dropped_with_a_reason(cls, tmp_path):
    made, work = run(build(cls), ROWS, tmp_path, teacher=Rule(lambda r: "\n", lambda r: (0, 0)))
    if cls.__name__ == "Prefer":
        return  # log-probabilities have no form
    told = json.dumps([work.tally.dropped, work.tally.notes])
    assert "malformed: " in told
    if cls.__name__ not in GROWING and cls is not Canary:
        assert not made
        assert {r.id.partition("/")[0] for r, _ in work.fallen} == {r.id for r in ROWS}
        assert sum(work.tally.dropped.values()) == len(work.fallen)


@every
def test_a_generator_s_failure_is_the_reason(cls, tmp_path):
    if cls.__name__ == "Prefer":
        return
    generator = Rule(lambda request: None)
    made, work = run(build(cls), ROWS, tmp_path, teacher=generator)
    assert "refused by the rule" in json.dumps([work.tally.dropped, work.tally.notes])
    assert len(Journal(tmp_path / "journal.jsonl")) == 0, "a failure must be asked again"


@every
def test_no_records_make_none(cls, tmp_path):
    if cls is FromPool:
        return
    generator = speaker(cls)
    assert run(build(cls), [], tmp_path, teacher=generator)[0] == []
    assert not generator.asked


@every
def test_another_seed_asks_with_other_seeds(cls, tmp_path):
    if cls.__name__ == "Prefer":
        return
    seeds = []
    for seed in (0, 1):
        generator = speaker(cls)
        folder = tmp_path / str(seed)
        folder.mkdir()
        run(build(cls), ROWS, folder, seed=seed, teacher=generator)
        seeds.append({request.sampling.seed for request in generator.asked})
    assert seeds[0].isdisjoint(seeds[1])
    assert len(seeds[0]) > 1
