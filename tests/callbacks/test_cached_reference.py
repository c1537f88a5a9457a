"""A frozen reference that is asked once is the reference that is asked at every step."""

import json
from pathlib import Path

import pytest
import torch
from lightning import seed_everything

import callbacks as ours
from kd_lightning.cache.sums import RECORD, Sums
from kd_lightning.data.skills import Preference
from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.scores import LogRatio
from tests.evaluation.pair import distiller, trainer
from tests.tiny import save_model


def pairs(folder):
    rows = [
        {"prompt": f"Say {i}", "chosen": "yes " * (1 + i % 3), "rejected": f"no {i}"}
        for i in range(10)
    ]
    path = Path(folder) / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Preference(str(path), validation_share=0.2, batch_size=2, max_length=128)


def run(folder, teacher, reference, steps=4, **settings):
    seed_everything(5, verbose=False)
    module = distiller(teacher, teacher, Ranking(LogRatio(), Logistic(), 0.5, reference=reference))
    watched = [ours.CachedReference(**settings)] if reference == "cached" else []
    made = trainer(folder / "run", callbacks=watched, max_steps=steps)
    made.fit(module, pairs(folder))
    return module, watched


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.student.parameters()])


def test_the_same_student_comes_of_it(tmp_path, tiny_teacher):
    live, _ = run(tmp_path, tiny_teacher, "teacher")
    cached, _ = run(tmp_path, tiny_teacher, "cached")
    torch.testing.assert_close(weights(cached), weights(live), atol=1e-5, rtol=1e-5)
    other, _ = run(tmp_path, tiny_teacher, "teacher", steps=3)
    assert (weights(other) - weights(live)).abs().max() > 1e-3  # the comparison can fail


def count_forwards(monkeypatch):
    from kd_lightning.teachers.local import LocalTeacher

    rows, forward = [], LocalTeacher.forward
    monkeypatch.setattr(
        LocalTeacher,
        "forward",
        lambda self, batch, needs: rows.append(len(batch)) or forward(self, batch, needs),
    )
    return rows


def test_what_is_known_is_not_computed_again(tmp_path, tiny_teacher, monkeypatch):
    rows = count_forwards(monkeypatch)
    run(tmp_path, tiny_teacher, "cached", batch_tokens=200)
    first = sum(rows)
    assert first >= 20
    path = tmp_path / "run/reference/rank00000.bin"
    whole = path.read_bytes()
    assert len(whole) == 20 * RECORD.itemsize
    rows.clear()
    run(tmp_path, tiny_teacher, "cached", batch_tokens=200)
    again = sum(rows)
    assert path.read_bytes() == whole and first - again == 20
    path.write_bytes(whole[: 5 * RECORD.itemsize + 9])  # killed while it wrote
    rows.clear()
    run(tmp_path, tiny_teacher, "cached", batch_tokens=200)
    assert sum(rows) - again == 15
    known = Sums(path.parent).read()
    path.write_bytes(whole)
    assert known == pytest.approx(Sums(path.parent).read(), abs=1e-5)


def test_a_spoilt_record_ends_what_is_read(tmp_path):
    sums = Sums(tmp_path)
    sums.claim({"teacher": "a"})
    sums.add(0, [bytes([i] * 16) for i in range(4)], [-1.0, -2.5, 0.0, -9.0])
    assert list(sums.read().values()) == [-1.0, -2.5, 0.0, -9.0]
    path = tmp_path / "rank00000.bin"
    spoilt = bytearray(path.read_bytes())
    spoilt[2 * RECORD.itemsize + 17] ^= 1
    path.write_bytes(spoilt)
    assert list(sums.read().values()) == [-1.0, -2.5]
    sums.mend(0)
    assert path.stat().st_size == 2 * RECORD.itemsize


def test_another_reference_is_refused(tmp_path, tiny_teacher):
    run(tmp_path, tiny_teacher, "cached", steps=1)
    save_model(tmp_path / "other", width=32, layers=3, seed=9)
    with pytest.raises(KDError, match="another reference model"):
        run(tmp_path, str(tmp_path / "other"), "cached", steps=1)


def test_a_loss_that_reads_the_teacher_has_no_use_for_it(tmp_path, tiny_teacher):
    module = distiller(tiny_teacher, tiny_teacher, Ranking(LogRatio(), Logistic()))
    made = trainer(tmp_path / "run", callbacks=[ours.CachedReference()])
    with pytest.raises(KDError, match="reference=cached"):
        made.fit(module, pairs(tmp_path))
