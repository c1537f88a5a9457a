"""`kd elicit` and `kd inspect` as a user types them."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from kd_lightning.cli import main
from tests.data import kit

ROWS = [
    {"prompt": f"What is {a}+{b}?", "kind": "sum"} for a in range(11, 15) for b in range(21, 23)
]


SEEDS = {"path": "SEEDS"}


def config(folder, **more):
    told = {
        "output": str(folder / "set"),
        "seeds": {"path": kit.write(folder / "seeds.jsonl", ROWS)},
        "generators": {
            "teacher": {
                "class_path": "Scripted",
                "init_args": {"rule": "DemoRule", "error_rate": 0.0, "licence": "apache-2.0"},
            }
        },
        "steps": [
            {"class_path": "Answer", "init_args": {}},
            {"class_path": "Matches", "init_args": {"field": "answer", "pattern": "so"}},
        ],
        **more,
    }
    if told["seeds"].get("path") == "SEEDS":
        told["seeds"]["path"] = kit.write(folder / "seeds.jsonl", ROWS)
    path = folder / "elicit.yaml"
    path.write_text(yaml.safe_dump(told))
    return str(path)


def test_elicit_writes_a_set(tmp_path, capsys):
    assert main(["elicit", "-c", config(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "01-answer: 8 in, 8 out, 8 requests" in said
    assert f"--data.knowledge={tmp_path}/set" in said
    card = json.loads((tmp_path / "set/card.json").read_text())
    assert card["records"] == 8
    recorded = yaml.safe_load((tmp_path / "set/config.yaml").read_text())
    assert recorded["generators"]["teacher"]["init_args"]["error_rate"] == 0.0
    (shard,) = card["shards"]
    first = json.loads((tmp_path / "set" / shard["name"]).read_text().splitlines()[0])
    assert first["answer"] == "1+1=2 1+2=3 so 32" and first["kind"] == "sum"
    # the recorded configuration makes the same set again
    again = tmp_path / "again"
    assert main(["elicit", "-c", str(tmp_path / "set/config.yaml"), f"--output={again}"]) == 0
    told = json.loads((again / "card.json").read_text())
    assert told["shards"][0]["sha256"] == shard["sha256"]


def test_inspect_shows_and_draws(tmp_path, capsys):
    assert main(["elicit", "-c", config(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "set"), "--rows=2"]) == 0
    said = capsys.readouterr().out
    assert "8 records" in said and re.search(r"01-answer +8 +8 +none", said)
    assert "words in a record" in said and said.count("answer:") == 2
    for name in ("steps.png", "lengths.png"):
        assert (tmp_path / "set/inspect" / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stepz": []}, "stepz"),
        ({"steps": [{"class_path": "Anser"}]}, "Anser"),
        ({"steps": [{"class_path": "Answer", "init_args": {"templat": "x"}}]}, "templat"),
        ({"steps": [{"class_path": "Answer", "init_args": {"generator": "judge"}}]}, "'judge'"),
        ({"steps": []}, "write at least one of `steps`"),
        ({"seeds": {"path": "none.jsonl"}}, "write an existing file to --seeds.path"),
        ({"seeds": {**SEEDS, "split": "validation"}}, "write train to --seeds.split"),
        ({"seeds": {**SEEDS, "columns": {"prompt": "q"}}}, "--seeds.columns.prompt=<column>"),
        ({"seeds": {**SEEDS, "limit": 0}}, "there were no seeds"),
        ({"steps": [{"class_path": "BestOf"}]}, "an entry needs scorer"),
        ({"stages": []}, "the configuration is one of kd pipeline"),
        ({"steps": [{"class_path": "Rationalise"}]}, "which has kind, prompt: give"),
        ({"generators": {"teacher": {"class_path": "Scripted"}}}, "rule"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path, capsys, change, sentence):
    assert main(["elicit", "-c", config(tmp_path, **change)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said
    assert len(said.strip().splitlines()) == 1


def test_inspect_of_something_else(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no knowledge set" in capsys.readouterr().err
    assert main(["inspect"]) == 2
    assert "write kd inspect SET" in capsys.readouterr().err


def test_no_secret_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", "canary-4711-canary")
    path = config(tmp_path, terms_override="told by canary-4711-canary")
    assert main(["elicit", "-c", path]) == 0
    for file in (tmp_path / "set").rglob("*"):
        if file.is_file():
            assert b"canary-4711" not in file.read_bytes(), file


def test_only_a_folder_of_its_own_is_written_to(tmp_path, capsys):
    file, other, run = tmp_path / "file", tmp_path / "other", tmp_path / "run"
    other.mkdir()
    run.mkdir()
    for path in (file, other / "notes.txt", run / "run.json"):
        path.write_text("mine")
    for folder, why in ((file, "is a file"), (other, "notes.txt"), (run, "a training run")):
        assert main(["elicit", "-c", config(tmp_path), f"--output={folder}"]) == 2
        assert why in capsys.readouterr().err
    assert [p.name for p in other.iterdir()] == ["notes.txt"]


def test_terms_that_nobody_stated_are_said(tmp_path, capsys):
    unknown = {"class_path": "Scripted", "init_args": {"rule": "DemoRule"}}
    assert main(["elicit", "-c", config(tmp_path, generators={"teacher": unknown})]) == 0
    assert "teacher: the terms of its outputs are not stated" in capsys.readouterr().out
    assert (
        "| teacher | Scripted scripted | not stated |" in (tmp_path / "set/README.md").read_text()
    )


def test_what_a_later_step_lacks_is_missed_before_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    how = {
        "url": "http://127.0.0.1:9/v1",
        "model": "m",
        "key_variable": "JUDGE_KEY",
        "licence": "x",
    }
    teacher = {"class_path": "Scripted", "init_args": {"rule": "DemoRule", "licence": "mit"}}
    judge = {"class_path": "ServerTeacher", "init_args": {**how, "logprobs": False}}
    steps = [
        {"class_path": "Answer"},
        {"class_path": "Rate", "init_args": {"generator": "judge"}},
    ]
    generators = {"teacher": teacher, "judge": judge}
    assert main(["elicit", "-c", config(tmp_path, steps=steps, generators=generators)]) == 2
    told = capsys.readouterr()
    assert "JUDGE_KEY" in told.err and "01-answer" not in told.out
    assert not (tmp_path / "set/steps").exists()


def test_an_interruption_is_one_sentence(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("kd_lightning.teachers.scripted.Scripted.replies", interrupted)
    assert main(["elicit", "-c", config(tmp_path)]) == 130
    assert capsys.readouterr().err.strip().endswith("the same command goes on")
