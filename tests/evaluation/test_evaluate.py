from __future__ import annotations

import json

import pytest

from kd_lightning.errors import KDError
from kd_lightning.evaluation.evaluate import evaluate
from tests.evaluation.pair import distiller, documents, instructions, ready
from tests.evaluation.test_measure import by_hand
from tests.tiny import save_model


def test_three_models_side_by_side(tmp_path, tiny_teacher, capsys):
    save_model(tmp_path / "baseline", seed=4)
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    out = tmp_path / "out"
    found = evaluate(module, data, out, str(tmp_path / "baseline"), rows=2, split="validation")
    assert list(found["columns"]) == ["teacher", "student", "baseline"]
    expected = by_hand(module, data)
    stored = json.loads((out / "comparison.json").read_text())
    for name in ("kl", "ce", "agreement"):
        value = stored["columns"]["student"]["metrics"][name]
        assert value == pytest.approx(expected[name], rel=1e-4)
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and set(answers[0]["answers"]) == {"teacher", "student", "baseline"}
    assert answers[0]["answers"]["student"]["kl"] > 0
    assert "student" in (out / "comparison.md").read_text()
    names = {path.stem for path in (out / "plots").glob("*.png")}
    assert names == {"comparison", "kl_by_position", "agreement_by_position"}
    assert "baseline" in capsys.readouterr().out


def test_documents_without_a_teacher(tmp_path, tiny_teacher):
    module, data = distiller(None, tiny_teacher), documents(tmp_path)
    ready(module, data)
    found = evaluate(module, data, tmp_path / "out", split="validation")
    assert list(found["columns"]) == ["student"]
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_a_split_that_there_is_not(tmp_path, tiny_teacher):
    module, data = distiller(None, tiny_teacher), documents(tmp_path)
    ready(module, data)
    with pytest.raises(KDError, match="one of train, validation, test"):
        evaluate(module, data, tmp_path / "out", split="dev")


def test_a_baseline_that_is_no_model(tmp_path, tiny_teacher):
    module, data = distiller(None, tiny_teacher), documents(tmp_path)
    ready(module, data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDError):
        evaluate(module, data, tmp_path / "out", str(tmp_path / "empty"), split="validation")
