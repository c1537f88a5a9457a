"""Rounds of stages: what is done, what is left out, what is handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kd_lightning.cli import main
from kd_lightning.errors import KDError
from kd_lightning.pipeline.nursery import Nursery
from kd_lightning.pipeline.run import Pipeline, Until
from kd_lightning.pipeline.stage import Stage


class Commands:
    """In place of the command line: writes what a stage leaves, and remembers what was run."""

    def __init__(self, monkeypatch) -> None:
        self.ran: list[list[str]] = []
        self.fail: str | None = None
        monkeypatch.setattr(Nursery, "run", lambda nursery, arguments: self(arguments))

    def __call__(self, arguments):
        self.ran.append(arguments)
        told = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--"))
        if arguments[0] == self.fail:
            return 1
        folder = Path(told.get("output") or told["trainer.default_root_dir"])
        if arguments[0] == "elicit":
            seed = int(told["seed"])
            spend = {"requests": 7, "prompt_tokens": 1, "completion_tokens": 1, "money": 0.0}
            shards = [{"sha256": f"{seed}{told.get('strict')}"}]
            content = {"records": 10 + seed, "steps": [], "spend": spend, "shards": shards}
            (folder / "card.json").write_text(json.dumps(content))
        elif arguments[0] == "fit":
            (folder / "student").mkdir(exist_ok=True)
            (folder / "student/model.safetensors").write_text(json.dumps(told))
            (folder / "metrics.csv").write_text("step,val/loss\n1,3.0\n2,2.5\n")
        else:
            metrics = {"exact_match": 0.3 + 0.2 * len([r for r in self.ran if r[0] == "evaluate"])}
            content = {"columns": {"student": {"metrics": metrics}}, "grades": ["exact_match"]}
            (folder / "comparison.json").write_text(json.dumps(content))
        return 0

    @property
    def names(self) -> list[str]:
        return [arguments[0] for arguments in self.ran]


@pytest.fixture
def commands(monkeypatch):
    return Commands(monkeypatch)


def stages(folder: Path, **more) -> list[Stage]:
    (folder / "part.yaml").write_text("lr: 1\n")
    for name in ("elicit", "fit", "evaluate"):
        (folder / f"{name}.yaml").write_text("optimizer: part.yaml\n")
    config = {name: [str(folder / f"{name}.yaml")] for name in ("elicit", "fit", "evaluate")}
    speaker = "generators.student.path"
    return [
        Stage(
            "draw", "elicit", config["elicit"],
            {speaker: "{previous.train}/student", **more}, {speaker: "base"},
        ),
        Stage("train", "fit", config["fit"], {"data.knowledge": "{draw}"}),
        Stage("measure", "evaluate", config["evaluate"], {"student": "{train}/student"}),
    ]  # fmt: skip


def run(folder, rounds=2, until=None, **more):
    said: list[str] = []
    made = Pipeline(
        str(folder / "out"), stages(folder, **more), rounds, until=until, said=said.append
    )
    return made.run(), said


def test_each_round_hands_its_student_to_the_next(tmp_path, commands):
    table, _ = run(tmp_path)
    assert commands.names == ["elicit", "fit", "evaluate"] * 2
    first, second = commands.ran[0], commands.ran[3]
    out = tmp_path / "out"
    assert "--generators.student.path=base" in first and "--seed=0" in first
    assert f"--generators.student.path={out}/round-01/train/student" in second
    assert "--seed=1" in second and f"--output={out}/round-02/draw" in second
    assert f"--data.knowledge={out}/round-02/draw" in commands.ran[4]
    assert [row["draw"]["result"]["records"] for row in table] == [10, 11]


def test_the_summary_has_a_line_for_each_round(tmp_path, commands):
    _, said = run(tmp_path)
    text = (tmp_path / "out/summary.md").read_text()
    assert said[-1] == text
    assert text.splitlines() == [
        "| stage | number | round 1 | round 2 |",
        "|---|---|---|---|",
        "| draw | records | 10 | 11 |",
        "| draw | requests | 7 | 7 |",
        "| train | validation loss | 2.5 | 2.5 |",
        "| measure | exact match | 50.0% | 70.0% |",
    ]


def test_what_stands_is_not_done_again(tmp_path, commands):
    run(tmp_path)
    commands.ran.clear()
    _, said = run(tmp_path)
    assert commands.ran == []
    assert [line for line in said if "stands, unchanged" in line].__len__() == 6


def test_one_more_round_is_only_that_round(tmp_path, commands):
    run(tmp_path)
    commands.ran.clear()
    run(tmp_path, rounds=3)
    assert commands.names == ["elicit", "fit", "evaluate"]


def test_a_change_is_done_again_with_all_that_reads_it(tmp_path, commands):
    run(tmp_path)
    commands.ran.clear()
    _, said = run(tmp_path, strict="yes")
    assert commands.names == ["elicit", "fit", "evaluate"] * 2
    assert (tmp_path / "out/round-01/draw.former-1").is_dir()
    assert any("changed, so done again" in line for line in said)


def test_a_file_that_a_configuration_includes_counts(tmp_path, commands):
    made = stages(tmp_path)
    Pipeline(str(tmp_path / "out"), made, said=lambda _: None).run()
    commands.ran.clear()
    (tmp_path / "part.yaml").write_text("lr: 2\n")
    Pipeline(str(tmp_path / "out"), made, said=lambda _: None).run()
    assert commands.names == ["elicit", "fit", "evaluate"]


def test_the_folder_may_be_moved(tmp_path, commands):
    run(tmp_path)
    commands.ran.clear()
    (tmp_path / "out").rename(tmp_path / "moved")
    Pipeline(str(tmp_path / "moved"), stages(tmp_path), 2, said=lambda _: None).run()
    assert commands.ran == []


def test_an_interrupted_stage_goes_on(tmp_path, commands):
    commands.fail = "fit"
    with pytest.raises(KDError, match="stage train of round 1 ended with code 1"):
        run(tmp_path)
    commands.fail = None
    commands.ran.clear()
    run(tmp_path)
    assert commands.names == ["fit", "evaluate", "elicit", "fit", "evaluate"]
    assert "--resume=auto" in commands.ran[0] and "--resume=auto" not in commands.ran[3]


def test_enough_ends_the_rounds(tmp_path, commands):
    until = Until("measure", "exact_match", 0.6)
    table, said = run(tmp_path, rounds=5, until=until)
    assert len(table) == 2 and said[-1] == "exact_match is 0.7: enough"
    with pytest.raises(KDError, match="measures no 'f1' of its student"):
        run(tmp_path, rounds=5, until=Until("measure", "f1", 0.6))


def test_the_output_is_a_folder_and_a_command_one_of_ours(tmp_path, capsys):
    path = tmp_path / "pipeline.yaml"
    stage = {"name": "a", "command": "elicitt", "configs": []}
    path.write_text(yaml.safe_dump({"output": str(path), "stages": [stage]}))
    assert main(["pipeline", "-c", str(path)]) == 2
    assert "write one of 'elicit', 'fit'" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"output": str(path), "stages": [{**stage, "command": "fit"}]}))
    assert main(["pipeline", "-c", str(path)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_refusals(tmp_path, commands):
    draw, train, measure = stages(tmp_path)
    for wrong, sentence in (
        ([], "at least one of `stages`"),
        ([draw, draw], "two stages are called 'draw'"),
        ([train, draw], r"stage train reads \{draw\}, which is no stage before it"),
        ([Stage("a", "fit", ["none.yaml"])], "there is no configuration none.yaml"),
    ):
        with pytest.raises(KDError, match=sentence):
            Pipeline(str(tmp_path / "out"), wrong, said=lambda _: None).run()
    again = Stage("draw", "elicit", draw.configs, {"x": "{previous.draw}"})
    with pytest.raises(KDError, match=r"the first round has none before it.*`first`"):
        Pipeline(str(tmp_path / "out"), [again], said=lambda _: None).run()
    with pytest.raises(KDError, match="'Draw it' cannot name a stage"):
        Stage("Draw it", "elicit", [])
    with pytest.raises(KDError, match="'x' is no stage"):
        Pipeline(str(tmp_path / "out"), [draw], until=Until("x", "m", 1.0)).check()
    assert commands.ran == []
