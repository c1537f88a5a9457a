"""`predict` leaves a file of answers."""

from __future__ import annotations

import json

import callbacks as ours
from tests.evaluation.pair import distiller, instructions, trainer


def test_every_asked_row_is_answered_once(tmp_path, tiny_teacher):
    made = trainer(tmp_path / "run", callbacks=[ours.WriteAnswers()])
    data = instructions(tmp_path)
    made.predict(distiller(tiny_teacher, tiny_teacher), data)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["id"] for row in found] == [e.id for e in data.examples("test")]
    assert all({"answer", "references", "grades", "finished"} <= row.keys() for row in found)
