"""Texts written out of a record's values."""

import pytest

from kd_lightning.curate import Compose, Flatten
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, work


def test_all_are_rendered_over_the_record_as_it_came_in():
    step = Compose({"prompt": "{{ prompt }} ({{ answer }})", "answer": "{{ prompt }}"})
    (made,) = step.run(records({"prompt": "a", "answer": "b"}), work())
    assert dict(made.values) == {"prompt": "a (b)", "answer": "a"}
    assert made.lineage[-1]["step"] == "curator"


def test_a_list_of_templates_makes_several_records_of_one():
    (made,) = Compose({"shown": ["{{ prompt }}", "{{ prompt }}!"]}).run(
        records({"prompt": "a"}), work()
    )
    assert made["shown"] == ["a", "a!"]
    both = Flatten("shown", "prompt", along={}).run([made], work())
    assert [record["prompt"] for record in both] == ["a", "a!"]


def test_a_record_without_a_value_falls_with_its_name():
    kept, fallen = ran(Compose({"x": "{{ b }}"}), records({"a": 1}, {"b": 2}))
    assert kept == ["r1"]
    assert fallen == {"cannot be composed: 'b' is undefined": ["r0"]}


def test_what_a_value_holds_is_text_and_no_template():
    (made,) = Compose({"x": "{{ a }}"}).run(records({"a": "{{ 7 * 7 }}"}), work())
    assert made["x"] == "{{ 7 * 7 }}"


@pytest.mark.parametrize("values", [{}, {"id": "x"}, {"lineage": "x"}, {"x": "{% if %}"}])
def test_what_cannot_work_is_refused_at_set_up(values):
    with pytest.raises(KDError):
        Compose(values)


@pytest.mark.parametrize("source", ["{{ a.__class__.__mro__ }}", "{{ 1 // 0 }}"])
def test_what_the_sandbox_forbids_or_fails_at_names_the_record(source):
    with pytest.raises(KDError, match="r0"):
        Compose({"x": source}).run(records({"a": "b"}), work())
