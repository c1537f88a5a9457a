"""Nothing is trained on what may not be trained on, unless somebody states why."""

from __future__ import annotations

import pytest
import yaml

from kd_lightning.errors import KDError
from kd_lightning.evaluation.card import make_card
from kd_lightning.rewards import Judge
from kd_lightning.teachers import ServerTeacher, rules
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.rights import forbids, licence_of, refuse_no_train, strictest
from kd_lightning.teachers.scripted import Scripted
from tests.conftest import ROOT
from tests.parallel import runs
from tests.teachers.hostile import serving


def speaker(licence: str | None) -> Scripted:
    return Scripted(rules.DemoRule(), licence=licence)


POOL = {
    "free": speaker("apache-2.0"),
    "closed": speaker("vendor-terms-no-train"),
    "open": speaker(None),
}


@pytest.mark.parametrize("override", [None, "", "  "])
def test_a_no_train_generator_is_refused_by_name(override):
    with pytest.raises(KDError, match=r"closed \(vendor-terms-no-train\).*`terms_override`"):
        refuse_no_train(POOL, override)


def test_a_stated_override_goes_into_the_card():
    card = refuse_no_train(POOL, "a contract of ours allows it")
    assert card["licences"] == {
        "free": "apache-2.0",
        "closed": "vendor-terms-no-train",
        "open": "not stated",
    }
    assert card["override"] == {"of": ["closed"], "statement": "a contract of ours allows it"}


def test_an_override_that_nobody_needs_is_not_recorded():
    card = refuse_no_train({"free": POOL["free"]}, "because")
    assert card == {"licences": {"free": "apache-2.0"}}


def test_the_word_is_known_however_it_is_written():
    assert all(map(forbids, ("no-train", "NO_TRAIN", "proprietary (no train)")))
    assert not any(map(forbids, (None, "", "mit", "notrain-like-name")))


def test_several_licences_hold_together_and_the_strictest_stands_first():
    assert (
        strictest(["mit", "x-no-train", "mit", "apache-2.0"]) == "x-no-train AND apache-2.0 AND mit"
    )
    assert strictest(["mit", None]) == "mit AND not stated"
    assert strictest([None, None]) is None


def test_a_teachers_own_card_states_its_licence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0-no-train\n---\n# A model\n")
    assert licence_of(str(tmp_path)) == "cc-by-nc-4.0-no-train"
    with pytest.raises(KDError, match="no-train"):
        refuse_no_train({"teacher": LocalTeacher(str(tmp_path))}, None)
    assert LocalTeacher(str(tmp_path), licence="mit").licence == "mit"


def test_training_on_a_no_train_teacher_ends_before_the_first_request(tmp_path, tiny_teacher):
    with serving() as server:
        closed = ServerTeacher(server.url, "m", licence="terms, no-train")
        with pytest.raises(KDError, match=r"teacher m \(terms, no-train\).*`terms_override`"):
            runs.run(tiny_teacher, tmp_path, "sft", "auto", steps=1, told=closed)
        assert server.seen == []


def test_so_does_training_by_a_no_train_judge(tmp_path, tiny_teacher):
    judge = Judge("quality", generator=speaker("no-train"))
    with pytest.raises(KDError, match=r"judge .*\(no-train\).*`terms_override`"):
        runs.run(tiny_teacher, tmp_path, "kl", "auto", steps=1, reward=judge)


def test_with_a_statement_it_trains_and_the_card_says_so(tmp_path, tiny_teacher):
    folder = tiny_teacher
    told = LocalTeacher(folder, licence="terms, no-train")
    made = runs.run(
        folder, tmp_path, "kl", "auto", steps=1, told=told, terms_override="a contract of ours"
    )
    card = str(make_card(made["model"]))
    assert f"terms of teacher {folder}: a contract of ours" in card
    assert "terms, no-train" in card


def _parts(told):
    if isinstance(told, dict):
        if "class_path" in told:
            yield told
        told = list(told.values())
    for value in told if isinstance(told, list) else ():
        yield from _parts(value)


def test_every_configuration_of_a_teacher_names_a_licence():
    named = {"LocalTeacher", "ServerTeacher", "Scripted", "Student"}
    found = 0
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for part in _parts(yaml.safe_load(path.read_text())):
            if part["class_path"].rpartition(".")[2] in named:
                found += 1
                assert part.get("init_args", {}).get("licence"), f"{path}: {part['class_path']}"
    assert found > 50
