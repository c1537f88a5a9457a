"""R11: a student and a teacher that do not mean the same by the same id, named before step 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_lightning.doctor.findings import Level
from kd_lightning.errors import KDError
from kd_lightning.models import vocabulary
from kd_lightning.models.loading import load_tokenizer
from tests.doctor.kit import looked_at, patient, said
from tests.tiny import config


def swapped(told):
    """Two letters have changed places."""
    ids = told["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]


def shifted(told):
    """One more token at the front."""
    for name in (ids := told["model"]["vocab"]):
        ids[name] += 1
    for token in told["added_tokens"]:
        token["id"] += 1
    ids["new"] = 0


def missing(told):
    """A letter is gone; its id is empty, and the control tokens have moved."""
    del told["model"]["vocab"]["R"]


def another_control_token(told):
    next(t for t in told["added_tokens"] if t["content"] == "<|tool|>")["content"] = "<|code|>"


def lower_case(told):
    """The same ids, but capitals are lost."""
    told["normalizer"] = {"type": "Lowercase"}


def a_space_in_front(told):
    """The same ids, but each text begins with a space that nobody wrote."""
    told["pre_tokenizer"]["add_prefix_space"] = True


MUTATIONS = [
    (swapped, "mean different tokens by 2 of 262 ids, first", True),
    (shifted, "mean different tokens by", True),
    (missing, "of 261 ids, first 49: student None, teacher 'R'", True),
    (another_control_token, "by 1 of 262 ids, first 261: student '<|code|>'", True),
    (lower_case, "cut the same text differently", False),
    (a_space_in_front, "cut the same text differently ('Reverse ", False),
]


def mutated(folder: Path, change) -> str:
    place = folder / "tokenizer"
    load_tokenizer("demo").save_pretrained(place)
    told = json.loads((place / "tokenizer.json").read_text())
    change(told)
    (place / "tokenizer.json").write_text(json.dumps(told))
    return str(place)


@pytest.mark.parametrize(("change", "words", "refused"), MUTATIONS, ids=lambda x: str(x)[:20])
def test_r11_the_doctor_names_it_and_training_refuses_other_ids(tmp_path, change, words, refused):
    place = mutated(tmp_path, change)
    found = looked_at(patient(tmp_path, spec={"tokenizer": place}), "files", "tokenizers")
    level = Level.PROBLEM if refused else Level.WARNING
    assert words in said(found["tokenizers"], level), found
    pair = load_tokenizer(place), load_tokenizer("demo")
    if refused:
        with pytest.raises(KDError, match="tokenizers of student and teacher differ, first at id"):
            vocabulary.check_same(*pair)
    else:
        vocabulary.check_same(*pair)


def test_r11_the_same_tokenizer_is_not_suspected(tmp_path):
    found = looked_at(patient(tmp_path), "files", "tokenizers")["tokenizers"]
    assert not said(found, Level.PROBLEM) and not said(found, Level.WARNING)


def test_r11_rows_beyond_the_tokenizer_are_cut_off(tmp_path):
    """A vocabulary padded to a multiple of 64 is no other vocabulary."""
    spec = {"config": config(vocab_size=320, max_position_embeddings=256)}
    found = looked_at(patient(tmp_path, spec=spec), "files", "tokenizers", "step")
    for checked in found.values():
        assert not said(checked, Level.PROBLEM), checked
