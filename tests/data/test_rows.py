"""Fields by our name, a user's column, or a usual other name."""

import pytest

from kd_lightning.data.rows import Row
from kd_lightning.errors import KDError

VALUES = {"question": "q", "instances": [{"output": "o"}], "n": 3, "none": None, "a.b": "dots"}


def row(columns=None, aliases=None):
    return Row(VALUES, place="my.jsonl:7", columns=columns, aliases=aliases)


def test_column_alias_and_path():
    assert row({"prompt": "question"}).text("prompt") == "q"
    assert row(aliases={"prompt": ("instruction", "question")}).text("prompt") == "q"
    assert row({"answer": "instances.0.output"}).text("answer") == "o"
    assert row({"answer": "a.b"}).text("answer") == "dots"
    assert row().text("question") == "q"
    assert row().text("n") == "3"


def test_a_chosen_column_is_not_replaced_by_another():
    chosen = row({"prompt": "missing"}, {"prompt": ("question",)})
    with pytest.raises(KDError, match=r"my\.jsonl:7: the row has no 'missing'.*'question'"):
        chosen.text("prompt")


@pytest.mark.parametrize("column", ["gone", "none", "instances.1.output", "instances.x", "n.0"])
def test_a_missing_field_names_place_field_and_columns(column):
    with pytest.raises(KDError, match=r"my\.jsonl:7: .*needed as 'prompt' \(its columns: 'quest"):
        row({"prompt": column}).text("prompt")
    assert row({"prompt": column}).text("prompt", default="") == ""
    assert row({"prompt": column}).get("prompt", 5) == 5
    assert "prompt" not in row({"prompt": column})


def test_a_wrong_type_is_named():
    with pytest.raises(KDError, match=r"my\.jsonl:7: 'instances' holds a list"):
        row().text("instances")
    with pytest.raises(KDError, match="text or a list of texts"):
        row().texts("instances")


def test_identity():
    assert row().id == "my.jsonl:7"
    assert row({"id": "n"}).id == "3"
