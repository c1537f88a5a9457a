"""A teacher in few bits is measured against itself in full, and refused beyond the limit."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.teachers import quantised
from kd_lightning.teachers.local import LocalTeacher
from tests.teachers.test_local import NOTHING, batch

CPU = torch.device("cpu")
PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "torchao_int8": "torchao"}


def made(path, **how):
    teacher = LocalTeacher(str(path), **how)
    teacher.materialize(CPU)
    return teacher


@pytest.fixture
def coarse(monkeypatch):
    """A quantiser of our own: weights rounded to steps of `step`; counts the models loaded."""
    state = {"step": 0.0, "loaded": []}
    load = loading.load_model

    def rounding(*args, quantization=None, **how):
        model = load(*args, quantization=None, **how)
        state["loaded"].append(quantization)
        if quantization is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_((parameter / state["step"]).round() * state["step"])
        return model

    monkeypatch.setattr(loading, "quantization", lambda kind: None if kind == "none" else kind)
    monkeypatch.setattr(loading, "load_model", rounding)
    return state


def test_what_is_measured_is_the_divergence(coarse, tiny_teacher, caplog):
    coarse["step"] = 0.25
    with caplog.at_level(logging.INFO):
        teacher = made(tiny_teacher, quantization="int8", quantization_limit=100.0)
    assert coarse["loaded"] == [None, "int8"]
    full = made(tiny_teacher).model
    log_p, log_q = (quantised.log_probabilities(m).double() for m in (full, teacher.model))
    assert log_p.exp().sum(-1) == pytest.approx(1.0, abs=1e-5)
    expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert expected > 0.01
    said = next(r.message for r in caplog.records if "KL(full || quantised)" in r.message)
    assert f"{expected:.4f} nats per token ({len(log_p)} tokens)" in said


def test_beyond_the_limit_it_is_refused(coarse, tiny_teacher):
    coarse["step"] = 0.5
    with pytest.raises(KDError, match=r"nats per token away .*quantization_limit is 0\.001"):
        made(tiny_teacher, quantization="nf4", quantization_limit=0.001)


def test_a_broken_quantiser_is_refused(coarse, tiny_teacher):
    coarse["step"] = float("nan")
    with pytest.raises(KDError, match="nan nats per token"):
        made(tiny_teacher, quantization="nf4")


def test_without_a_limit_only_the_quantised_one_is_loaded(coarse, tiny_teacher):
    coarse["step"] = 0.5
    teacher = made(tiny_teacher, quantization="nf4", quantization_limit=None)
    assert coarse["loaded"] == ["nf4"]
    assert teacher.forward(batch(), NOTHING).hidden.isfinite().all()


def test_a_full_teacher_is_not_measured(coarse, tiny_teacher):
    made(tiny_teacher)
    assert coarse["loaded"] == [None]


def test_where_the_full_one_does_not_fit(tiny_teacher):
    def load():
        raise torch.OutOfMemoryError

    with pytest.raises(KDError, match="quantization_limit=null"):
        quantised.full(load, CPU)


def test_the_texts_fit_any_tokenizer():
    model = made("demo").model
    rows = quantised.probe(model)
    assert len(rows) == len(quantised.TEXTS) and max(rows.lengths) <= quantised.MOST
    assert sum(rows.lengths) > 300


@pytest.mark.parametrize("kind", PACKAGES)
def test_what_is_not_installed_is_named(kind, tiny_teacher, monkeypatch):
    find = importlib.util.find_spec
    hidden = PACKAGES[kind]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == hidden else find(name, *a)
    )
    with pytest.raises(KDError, match=rf"needs {hidden}.*kd-lightning\[quantised\]"):
        made(tiny_teacher, quantization=kind)


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("nf4", 0.3), ("torchao_int8", 0.005)])
def test_real_ones_stay_near_the_full_one(kind, most):
    pytest.importorskip(PACKAGES[kind], reason="needs the extra `quantised`")
    teacher = made("demo", quantization=kind, dtype="float32", quantization_limit=most)
    full = quantised.log_probabilities(made("demo", dtype="float32").model)
    found = quantised.divergence(full, quantised.log_probabilities(teacher.model))
    assert 0 < found <= most
    assert teacher.forward(batch(), NOTHING).hidden.isfinite().all()


@pytest.mark.slow
def test_compiled_is_the_same(tiny_teacher):
    plain, compiled = (
        made(tiny_teacher, compile=c).forward(batch(), NOTHING) for c in (False, True)
    )
    torch.testing.assert_close(compiled.hidden, plain.hidden, atol=1e-4, rtol=1e-4)
