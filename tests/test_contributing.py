"""What CONTRIBUTING tells a newcomer to write works as written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
WRITE = re.compile(r"Write `(?P<path>[^`]+)`.*?```\w+\n(?P<code>.*?)```", re.S)


def test_each_recipe_is_at_most_ten_lines_of_text():
    recipes = re.split(r"^## ", TEXT, flags=re.M)[1:4]
    assert [r.split(":")[0] for r in recipes] == ["A loss", "A skill", "A method"]
    for recipe in recipes:
        prose = re.sub(r"```.*?```", "", recipe, flags=re.S).splitlines()[1:]
        assert len([line for line in prose if line.strip()]) <= 10


@pytest.mark.timeout(200)
def test_a_loss_a_skill_and_a_method_of_one_file_each(tmp_path, tiny_teacher):
    shutil.copytree(
        ROOT / "kd_lightning", tmp_path / "kd_lightning", ignore=shutil.ignore_patterns("assets")
    )
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    written = {m["path"]: m["code"] for m in WRITE.finditer(TEXT)}
    assert len(written) == 3
    for path, code in written.items():
        (tmp_path / path).write_text(code)
    towns = {"Chile": "Santiago", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo"}
    (tmp_path / "capitals.jsonl").write_text(
        "".join(json.dumps({"country": k, "capital": v}) + "\n" for k, v in towns.items())
    )
    student = (
        '{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, '
        '"num_hidden_layers": 1, "num_attention_heads": 2}'
    )
    command = [
        sys.executable, "-m", "kd_lightning.cli", "fit", "-c", "configs/method/squared.yaml",
        "--data=Capitals", "--data.path=capitals.jsonl", "--data.validation_share=0.25",
        "--model.teacher=LocalTeacher", f"--model.teacher.path={tiny_teacher}",
        f"--model.student.config={student}", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
        "--trainer.default_root_dir=run", "--model.graded_rows=1", "--trainer.logger=false",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "SquaredDistance" in (tmp_path / "run/config.yaml").read_text()
    contract = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/losses"]
    contract += ["-k", "SquaredDistance and not config and not leaf", "--rootdir", str(tmp_path)]
    done = subprocess.run(contract, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10
