from __future__ import annotations

import subprocess

import pytest

from kd_lightning.errors import KDError
from kd_lightning.tracking import command_line, describe_run, git_state, refuse_existing_run


def test_a_new_folder_is_taken(tmp_path):
    refuse_existing_run(tmp_path)
    refuse_existing_run(tmp_path / "not" / "there")
    (tmp_path / "notes.txt").write_text("")
    refuse_existing_run(tmp_path)


@pytest.mark.parametrize("marker", ["config.yaml", "run.json"])
def test_a_folder_with_a_run_is_refused_with_what_to_write(tmp_path, marker):
    (tmp_path / marker).write_text("")
    with pytest.raises(KDError, match=r"default_root_dir=.*--resume=auto"):
        refuse_existing_run(tmp_path)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["train.py", "fit", "-c", "a b.yaml"], "python train.py fit -c 'a b.yaml'"),
        (["/opt/env/bin/kd", "fit", "--model.loss=TAID"], "kd fit --model.loss=TAID"),
        (["/home/me/x/train.py", "fit"], "python train.py fit"),
        (["kd", "--model.teacher.api_key=abc"], "kd '--model.teacher.api_key=***'"),
        (["kd", "--x.token", "abc", "fit"], "kd --x.token '***' fit"),
        (["kd", "--model.micro_batch_tokens=9"], "kd --model.micro_batch_tokens=9"),
        (["kd", "--data.tokenizer=folder"], "kd --data.tokenizer=folder"),
    ],
)
def test_the_command_as_typed_without_secrets(typed, shown):
    assert command_line(typed) == shown


def test_the_commit_and_whether_files_differ(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    assert git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a.txt").write_text("1")
    assert git_state(tmp_path) is None  # nothing committed
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None  # lies inside, does not belong to it


def test_a_run_is_described():
    found = describe_run()
    assert {"command", "started", "versions", "platform", "git"} == set(found)
